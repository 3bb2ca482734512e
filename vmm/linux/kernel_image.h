// SPDX-License-Identifier: Apache-2.0
// A copy of the memory where x86-64 Linux maps its own image, to look for the kernel's tables in.
//
// It is made while the guest runs: the tables are constant once the kernel has decompressed and relocated itself.
// What is made of them is verified afterwards, so a copy of memory that changes is refused and not believed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "vmm/guest_memory.h"
#include "vmm/registers.h"

namespace stopvisor::vmm {

// Linux, Documentation/x86/x86_64/mm.rst: the kernel text mapping, of which KASLR uses 1 GiB.
inline constexpr uint64_t kKernelImageStart = 0xffff'ffff'8000'0000;
inline constexpr uint64_t kKernelImageEnd = 0xffff'ffff'c000'0000;

class KernelImage {
public:
  struct Part {
    uint64_t gva = 0;
    std::vector<std::byte> bytes;
  };

  // Copies what `paging` maps from kKernelImageStart to kKernelImageEnd. CONTEXT: any thread, with or without a
  // stop; takes milliseconds, and at most kMostBytes.
  // RETURNS: why not, in words: no 64-bit paging, nothing mapped, too much mapped.
  [[nodiscard]] static std::expected<KernelImage, std::string> copy(const GuestMemory& memory,
                                                                    const Registers& paging);
  // For tests.
  [[nodiscard]] static KernelImage of(std::vector<Part> parts);

  // Ranges without a hole, in ascending order.
  [[nodiscard]] std::span<const Part> parts() const noexcept { return parts_; }
  // All bytes from `gva` up to the next hole; none where `gva` is not mapped.
  [[nodiscard]] std::span<const std::byte> from(uint64_t gva) const noexcept;
  // [gva, end), empty where not all of it is there.
  [[nodiscard]] std::span<const std::byte> range(uint64_t gva, uint64_t end) const noexcept;
  [[nodiscard]] uint64_t size_bytes() const noexcept;

  static constexpr uint64_t kMostBytes = 128ULL << 20; // images of distributions' kernels take 30 to 60 MiB

private:
  std::vector<Part> parts_;
};

} // namespace stopvisor::vmm
