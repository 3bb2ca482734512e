// SPDX-License-Identifier: Apache-2.0
// QEMU as the peer: it boots the same probe guest on the same KVM, and is stopped over its own QMP socket.
#pragma once

#include <cstdint>
#include <expected>
#include <string>
#include <string_view>

#include "tools/bench/child.h"
#include "vmm/error.h"
#include "vmm/unique_fd.h"

namespace stopvisor::tools {

class QemuPeer {
public:
  // Boots the probe guest with the gap scenario under `qemu-system-x86_64 -M microvm`, and waits until QMP answers.
  // RETURNS: kFailed where QEMU is not installed or does not start.
  [[nodiscard]] static std::expected<QemuPeer, vmm::Error> boot(uint32_t cpus);
  ~QemuPeer();
  QemuPeer(QemuPeer&&) noexcept = default;
  QemuPeer& operator=(QemuPeer&&) = delete;

  // Executes one QMP command without arguments and waits for its answer. RETURNS: the round trip in nanoseconds.
  [[nodiscard]] std::expected<int64_t, vmm::Error> execute(std::string_view command);

private:
  QemuPeer(std::string folder, Child child) : folder_(std::move(folder)), child_(std::move(child)) {}
  [[nodiscard]] std::expected<void, vmm::Error> connect();
  [[nodiscard]] std::expected<std::string, vmm::Error> read_line();

  std::string folder_; // holds the guest's file and the socket; removed at the end
  Child child_;
  vmm::UniqueFd socket_;
  std::string received_;
};

} // namespace stopvisor::tools
