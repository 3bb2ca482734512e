// SPDX-License-Identifier: Apache-2.0
#include "vmm/event_fd.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

namespace stopvisor::vmm {

std::expected<UniqueFd, Error> make_event(std::string_view object) {
  UniqueFd fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!fd)
    return std::unexpected(system_error("make an eventfd", object, errno));
  return fd;
}

void raise_event(int fd) noexcept {
  const uint64_t one = 1;
  while (::write(fd, &one, sizeof one) < 0 && errno == EINTR) {
  }
}

bool clear_event(int fd) noexcept {
  uint64_t count = 0;
  ssize_t got = 0;
  do {
    got = ::read(fd, &count, sizeof count);
  } while (got < 0 && errno == EINTR);
  return got == sizeof count;
}

} // namespace stopvisor::vmm
