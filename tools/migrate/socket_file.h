// SPDX-License-Identifier: Apache-2.0
// The file of a unix socket that listens: made for us alone, and removed when it goes, if it is still ours.
#pragma once

#include <sys/types.h>

#include <expected>
#include <string>
#include <string_view>
#include <utility>

#include "tools/migrate/address.h"
#include "vmm/error.h"
#include "vmm/unique_fd.h"

namespace stopvisor::migrate {

class SocketFile {
public:
  SocketFile() noexcept = default; // none
  ~SocketFile();
  SocketFile(SocketFile&& other) noexcept
      : path_(std::exchange(other.path_, {})), device_(other.device_), inode_(other.inode_) {}
  SocketFile& operator=(SocketFile&&) = delete;

  struct Listening;
  // Binds and listens; the mode is 0600 from the first moment. A socket that nobody listens at any more is
  // replaced. CONTEXT: any thread; two that replace one at the same moment may leave the first without its name.
  // RETURNS: kBusy where somebody listens there, kUsage where there is something else, kFailed.
  [[nodiscard]] static std::expected<Listening, vmm::Error> listen(std::string_view operation,
                                                                   const Address& address, int backlog);

private:
  std::string path_; // empty: none
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

struct SocketFile::Listening {
  vmm::UniqueFd fd;
  SocketFile file;
};

} // namespace stopvisor::migrate
