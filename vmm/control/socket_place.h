// SPDX-License-Identifier: Apache-2.0
// Where a VM's control socket lives, and how a name is claimed, found and cleaned up.
//
// NAME.sock and NAME.lock lie in $XDG_RUNTIME_DIR/stopvisor (else /run/stopvisor). The lock file is held with
// flock(2) for the VM's whole life and the kernel lets go of it however the VM dies, so that whoever can take
// it knows the VM to be dead and may remove what it left; a running VM is never taken over. Every claim, clean-up
// and release happens under a short flock of the directory, so that none meets another half-way.
#pragma once

#include <sys/types.h>

#include <expected>
#include <string>
#include <string_view>
#include <vector>

#include "vmm/error.h"
#include "vmm/unique_fd.h"

namespace stopvisor::vmm {

// RETURNS: kUsage where `name` is not 1 to 64 of [A-Za-z0-9_.-], or starts with '.' or '-'.
[[nodiscard]] std::expected<void, Error> check_vm_name(std::string_view name);

// The directory, made where it is missing (`create`), opened and found to be ours alone.
struct SocketDirectory {
  std::string path;
  UniqueFd fd; // empty where the directory does not exist and `create` is false

  // RETURNS: kFailed where it cannot be made, is a symbolic link or no directory, or others can get at it.
  [[nodiscard]] static std::expected<SocketDirectory, Error> open(bool create);
  [[nodiscard]] std::string socket_path(std::string_view name) const;
  [[nodiscard]] std::string log_path(std::string_view name) const;
};

// A name that is ours until the object goes: the lock is held, and the socket file goes with it.
class ControlPlace {
public:
  // RETURNS: kUsage for a bad name or a path too long for a socket, kRefused where a VM of that name runs,
  // kFailed where the directory or the files cannot be used.
  [[nodiscard]] static std::expected<ControlPlace, Error> claim(std::string_view name);
  // The same for the first free one of vm1, vm2, ...
  [[nodiscard]] static std::expected<ControlPlace, Error> claim_generated();

  // Makes the socket and listens. Call once. RETURNS: kFailed.
  [[nodiscard]] std::expected<UniqueFd, Error> listen();
  // Removes the socket and the lock file, and gives the name back. Also done by the destructor.
  void release() noexcept;

  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] std::string socket_path() const { return directory_.socket_path(name_); }
  [[nodiscard]] std::string log_path() const { return directory_.log_path(name_); }

  ~ControlPlace() { release(); }
  ControlPlace(ControlPlace&&) noexcept = default;
  ControlPlace& operator=(ControlPlace&&) = delete;

private:
  ControlPlace() = default;

  SocketDirectory directory_;
  std::string name_;
  UniqueFd lock_;
};

struct RunningVm {
  std::string name;
  pid_t pid = 0; // as written in the lock file
};

// The VMs that run, by name; what dead ones left is removed. An empty list where there is no directory.
[[nodiscard]] std::expected<std::vector<RunningVm>, Error> running_vms();

} // namespace stopvisor::vmm
