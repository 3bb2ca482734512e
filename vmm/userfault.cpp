// SPDX-License-Identifier: Apache-2.0
#include "vmm/userfault.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string>
#include <utility>

namespace stopvisor::vmm {
namespace {

// Of Linux 6.1 and 6.4: include/uapi/linux/userfaultfd.h.
constexpr unsigned long kNewUserfault = _IO(UFFDIO, 0x00);
constexpr uint64_t kMarksAbsentPages = 1ULL << 13;
constexpr uint64_t kNeeded = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;

constexpr size_t kMostAtOnce = 32;

// The device first: an administrator can give it to a group. RETURNS: otherwise errno.
std::expected<UniqueFd, int> make_descriptor() noexcept {
  const UniqueFd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  if (device)
    if (UniqueFd fd(::ioctl(device.get(), kNewUserfault, O_CLOEXEC | O_NONBLOCK)); fd)
      return fd;
  const auto fd = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
  if (fd < 0)
    return std::unexpected(errno);
  return UniqueFd(fd);
}

// A kernel refuses what it does not know, and then the descriptor is of no more use.
int agree(int fd, uint64_t features) noexcept {
  uffdio_api api{.api = UFFD_API, .features = features, .ioctls = 0};
  return ::ioctl(fd, UFFDIO_API, &api) == 0 ? 0 : errno;
}

uffdio_range range_of(std::span<std::byte> memory) noexcept {
  return {reinterpret_cast<uintptr_t>(memory.data()), memory.size()};
}

int set_protection(int fd, std::span<std::byte> memory, uint64_t mode) noexcept {
  uffdio_writeprotect order{.range = range_of(memory), .mode = mode};
  while (::ioctl(fd, UFFDIO_WRITEPROTECT, &order) != 0)
    if (errno != EAGAIN && errno != EINTR) // EAGAIN: the process' mappings were changing
      return errno;
  return 0;
}

} // namespace

std::expected<Userfault, Error> Userfault::open(std::string_view operation) {
  for (const uint64_t more : {kMarksAbsentPages, uint64_t{0}}) {
    auto made = make_descriptor();
    if (!made && (made.error() == EPERM || made.error() == EACCES))
      return std::unexpected(
          Error{std::string(operation), "userfaultfd",
                "this process may not watch what KVM writes: give it CAP_SYS_PTRACE or the right to "
                "open /dev/userfaultfd, or set vm.unprivileged_userfaultfd=1",
                Status::kRefused});
    if (!made)
      return std::unexpected(system_error(operation, "userfaultfd", made.error()));
    UniqueFd& fd = *made;
    if (agree(fd.get(), kNeeded | more) == 0)
      return Userfault(std::move(fd), more != 0);
  }
  return std::unexpected(
      Error{std::string(operation), "userfaultfd", "this kernel cannot watch writes to memory: Linux 5.19 can"});
}

int Userfault::watch(std::span<std::byte> memory) const noexcept {
  uffdio_register order{.range = range_of(memory), .mode = UFFDIO_REGISTER_MODE_WP, .ioctls = 0};
  return ::ioctl(fd_.get(), UFFDIO_REGISTER, &order) == 0 ? 0 : errno;
}

int Userfault::watch_absent(std::span<std::byte> memory) const noexcept {
  uffdio_register order{.range = range_of(memory), .mode = UFFDIO_REGISTER_MODE_MISSING, .ioctls = 0};
  return ::ioctl(fd_.get(), UFFDIO_REGISTER, &order) == 0 ? 0 : errno;
}

int Userfault::fill(std::span<std::byte> memory, const std::byte* from, size_t& filled) const noexcept {
  uffdio_copy order{.dst = reinterpret_cast<uintptr_t>(memory.data()),
                    .src = reinterpret_cast<uintptr_t>(from),
                    .len = memory.size(),
                    .mode = 0,
                    .copy = 0};
  int refused = 0;
  while (::ioctl(fd_.get(), UFFDIO_COPY, &order) != 0) {
    if (errno != EAGAIN && errno != EINTR) { // EAGAIN: the process' mappings were changing, or it did a part
      refused = errno;
      break;
    }
    if (order.copy > 0) {
      order.dst += static_cast<uint64_t>(order.copy);
      order.src += static_cast<uint64_t>(order.copy);
      order.len -= static_cast<uint64_t>(order.copy);
    }
    order.copy = 0;
  }
  filled = memory.size() - (refused != 0 ? order.len : 0);
  return refused;
}

int Userfault::fill_with_zeros(std::span<std::byte> memory) const noexcept {
  uffdio_zeropage order{.range = range_of(memory), .mode = 0, .zeropage = 0};
  while (::ioctl(fd_.get(), UFFDIO_ZEROPAGE, &order) != 0) {
    if (errno != EAGAIN && errno != EINTR) // as in fill()
      return errno;
    if (order.zeropage > 0) {
      order.range.start += static_cast<uint64_t>(order.zeropage);
      order.range.len -= static_cast<uint64_t>(order.zeropage);
    }
    order.zeropage = 0;
  }
  return 0;
}

int Userfault::release(std::span<std::byte> memory) const noexcept {
  uffdio_range range = range_of(memory);
  return ::ioctl(fd_.get(), UFFDIO_UNREGISTER, &range) == 0 ? 0 : errno;
}

int Userfault::protect(std::span<std::byte> memory) const noexcept {
  return set_protection(fd_.get(), memory, UFFDIO_WRITEPROTECT_MODE_WP);
}

int Userfault::unprotect(std::span<std::byte> memory) const noexcept {
  return set_protection(fd_.get(), memory, 0);
}

void Userfault::unwatch(std::span<std::byte> memory) const noexcept {
  uffdio_range range = range_of(memory);
  (void)::ioctl(fd_.get(), UFFDIO_UNREGISTER, &range); // it refuses a range that is not watched
  wake(memory); // UNREGISTER itself wakes only those who wait for absent pages
}

void Userfault::wake(std::span<std::byte> memory) const noexcept {
  uffdio_range range = range_of(memory);
  (void)::ioctl(fd_.get(), UFFDIO_WAKE, &range); // fails for ranges that are none
}

int Userfault::next(std::span<const std::byte*> to) const noexcept {
  std::array<uffd_msg, kMostAtOnce> messages; // NOLINT: filled below
  const size_t most = std::min(to.size(), messages.size());
  const ssize_t bytes = ::read(fd_.get(), messages.data(), most * sizeof(uffd_msg));
  if (bytes < 0)
    return errno == EAGAIN || errno == EINTR ? 0 : -errno;
  int count = 0;
  for (size_t i = 0; i < static_cast<size_t>(bytes) / sizeof(uffd_msg); ++i)
    if (messages[i].event == UFFD_EVENT_PAGEFAULT)
      to[count++] = reinterpret_cast<const std::byte*>(messages[i].arg.pagefault.address);
  return count;
}

} // namespace stopvisor::vmm
