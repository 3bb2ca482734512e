// SPDX-License-Identifier: Apache-2.0
// Where a patch writes, as its manifest says it: physical, virtual in a named address space, or a symbol.
//
// The spellings of peek and poke, and further address spaces: whoever writes a patch means an address space, not
// what a vCPU happens to use at the moment.
#pragma once

#include <cstdint>
#include <expected>
#include <string>
#include <string_view>

namespace stopvisor::patch {

struct Place {
  enum class Kind {
    kPhysical, // gpa:0x...
    kVcpu,     // gva:0x...[@N], by the page tables vCPU N uses at that moment
    kCr3,      // gva:0x...@cr3=0x...
    kKernel,   // gva:0x...@kernel, by the page tables of the guest's Linux kernel
    kProcess,  // gva:0x...@pid=N
    kSymbol,   // sym:NAME[+0x...][@CPU]
  };

  Kind kind = Kind::kPhysical;
  uint64_t value = 0; // the address; for kSymbol the offset from it
  uint64_t of = 0;    // vCPU, CR3, PID or CPU
  std::string symbol;

  bool operator==(const Place&) const = default;
};

// CONTEXT: any thread, does not block. RETURNS: what is wrong, in words.
[[nodiscard]] std::expected<Place, std::string> parse_place(std::string_view text);
// The spelling parse_place() takes.
[[nodiscard]] std::string to_string(const Place& place);
// Whether it means anything in a Linux guest alone.
[[nodiscard]] bool needs_kernel(const Place& place) noexcept;

} // namespace stopvisor::patch
