// SPDX-License-Identifier: Apache-2.0
// Our own memory watched by the kernel's userfaultfd: a write to a protected page, or any touch of one that is not
// there, makes who does it wait until somebody else has dealt with it.
//
// That may be anybody: a guest inside KVM_RUN, a device worker in the middle of a system call, a callback under
// a stop. Facts: Linux Documentation/admin-guide/mm/userfaultfd.rst, and userfaultfd(2), ioctl_userfaultfd(2).
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string_view>

#include "vmm/error.h"
#include "vmm/unique_fd.h"

namespace stopvisor::vmm {

// CONTEXT, where nothing is said: any thread; may block for as long as the host's memory management does.
class Userfault {
public:
  // RETURNS: kRefused, saying what to allow, where this process may not have writes of the kernel (and so KVM's)
  // stopped; kFailed where the kernel has no such thing (memfd and huge pages: before Linux 5.19).
  [[nodiscard]] static std::expected<Userfault, Error> open(std::string_view operation);

  // Whether pages that are not there yet can be protected too (Linux 6.4; those of a memfd always can).
  [[nodiscard]] bool marks_absent_pages() const noexcept { return marks_absent_pages_; }

  // RETURNS: 0 or an errno value. Ranges are of whole pages (of huge ones, where they are).
  [[nodiscard]] int watch(std::span<std::byte> memory) const noexcept; // writes to protected pages
  [[nodiscard]] int protect(std::span<std::byte> memory) const noexcept;
  // Wakes who waits for one of the pages, as the next does.
  [[nodiscard]] int unprotect(std::span<std::byte> memory) const noexcept;
  // Touches of pages that are not there, of memory that is not watch()ed.
  [[nodiscard]] int watch_absent(std::span<std::byte> memory) const noexcept;
  // Gives pages that are not there this content, at once for whoever looks, and wakes who waits for one. `from` has
  // as many bytes. EEXIST where a page is there. `filled`: how many bytes it did.
  [[nodiscard]] int fill(std::span<std::byte> memory, const std::byte* from, size_t& filled) const noexcept;
  // The same with zeros, which take no memory until they are written (of a memfd they do). Not of huge pages:
  // EINVAL.
  [[nodiscard]] int fill_with_zeros(std::span<std::byte> memory) const noexcept;
  // The end of watch_absent() for a part: its pages are the kernel's to make, of zeros. Wakes who waits for one.
  // Takes one of the mappings that a process may have (vm.max_map_count), or two: the part is none with its
  // neighbours.
  [[nodiscard]] int release(std::span<std::byte> memory) const noexcept;
  // The end of watch() or watch_absent(), and of all protection. Does nothing where it is not watched.
  void unwatch(std::span<std::byte> memory) const noexcept;
  void wake(std::span<std::byte> memory) const noexcept;

  // Readable where somebody waits. Each is told once.
  [[nodiscard]] int fd() const noexcept { return fd_.get(); }
  // Where they wait: at most `to.size()` of them. RETURNS: how many, 0 where nobody waits, or -errno.
  // CONTEXT: one thread; does not block.
  [[nodiscard]] int next(std::span<const std::byte*> to) const noexcept;

private:
  Userfault(UniqueFd fd, bool marks_absent_pages) : fd_(std::move(fd)), marks_absent_pages_(marks_absent_pages) {}

  UniqueFd fd_;
  bool marks_absent_pages_;
};

} // namespace stopvisor::vmm
