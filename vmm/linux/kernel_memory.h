// SPDX-License-Identifier: Apache-2.0
// Reads a guest kernel's memory at the kernel's own virtual addresses.
//
// The addresses come from the guest as well, so any of them may lead anywhere: what is not mapped to RAM is not
// read, and the caller says what is missing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <type_traits>

#include "vmm/guest_memory.h"
#include "vmm/registers.h"

namespace stopvisor::vmm {

class KernelMemory {
public:
  // `paging`: whose CR0, CR3, CR4 and EFER say how addresses are translated. `memory` must outlive the object.
  KernelMemory(const GuestMemory& memory, const Registers& paging) : memory_(memory), paging_(paging) {}

  // Copies the bytes at `gva`. RETURNS: false where a page is not mapped to RAM; `to` is undefined then.
  // CONTEXT: any thread, does not block; more than one word belongs together under a stop only.
  [[nodiscard]] bool read(uint64_t gva, std::span<std::byte> to) const noexcept;

  template <typename T>
    requires std::is_integral_v<T>
  [[nodiscard]] std::optional<T> value(uint64_t gva) const noexcept {
    T copied{};
    if (!read(gva, std::as_writable_bytes(std::span(&copied, 1))))
      return std::nullopt;
    return copied;
  }

  // The bytes up to a NUL, `most` of them at most; what is no printable ASCII becomes '?'. Nothing where a page
  // before the NUL is not mapped.
  [[nodiscard]] std::optional<std::string> text(uint64_t gva, size_t most) const;

  // Where `gva` lies in guest physical memory. Nothing where it is not mapped.
  [[nodiscard]] std::optional<Gpa> physical(uint64_t gva) const noexcept;
  [[nodiscard]] const Registers& paging() const noexcept { return paging_; }

private:
  const GuestMemory& memory_;
  Registers paging_;
};

// `c`, or '?' where it is not printable ASCII: what a guest says is shown on somebody's terminal.
[[nodiscard]] constexpr char printable(char c) {
  return c >= ' ' && c < 0x7f ? c : '?';
}

} // namespace stopvisor::vmm
