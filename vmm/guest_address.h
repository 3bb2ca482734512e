// SPDX-License-Identifier: Apache-2.0
// Guest addresses as users write them: gpa:0x..., gva:0x...[@vCPU], sym:name[+0xoff][@CPU].
#pragma once

#include <cstdint>
#include <expected>
#include <string>
#include <string_view>

#include "vmm/error.h"

namespace stopvisor::vmm {

struct GuestAddress {
  enum class Kind { kPhysical, kVirtual, kSymbol };

  Kind kind = Kind::kPhysical;
  uint64_t value = 0; // the address; for kSymbol the offset from it
  uint32_t cpu = 0;   // for kVirtual: whose page tables; for kSymbol: whose per-CPU variable
  std::string symbol; // for kSymbol

  bool operator==(const GuestAddress&) const = default;
};

// CONTEXT: any thread, does not block.
// RETURNS: kUsage, naming what is wrong: no prefix, an unknown one, a number that is not hexadecimal with
// 0x or beyond 64 bits, a vCPU that is no number or stands after gpa:, an empty symbol.
[[nodiscard]] std::expected<GuestAddress, Error> parse_guest_address(std::string_view operation,
                                                                     std::string_view text);

// The spelling parse_guest_address() takes; CPU 0 is left out.
[[nodiscard]] std::string to_string(const GuestAddress& address);

} // namespace stopvisor::vmm
