// SPDX-License-Identifier: Apache-2.0
// Finds the host bytes behind a range of guest addresses, before any of them is touched.
//
// A peek or poke is all or nothing: the whole range is resolved first, page by page where it is virtual,
// so that an unmapped page in the middle is an error and not half a write.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string_view>
#include <vector>

#include "vmm/error.h"
#include "vmm/guest_address.h"
#include "vmm/guest_memory.h"
#include "vmm/registers.h"

namespace stopvisor::vmm {

// The pieces of [address, address + length), in order, each contiguous in host memory. `registers` are
// those of address.cpu (not looked at for kPhysical). CONTEXT: under a stop, does not block.
// RETURNS: kUsage for a length of 0, a range past the end of the address space, or a symbol (which needs
// symbols to be loaded: none are yet); kFailed where a page is not mapped or is not RAM.
[[nodiscard]] std::expected<std::vector<std::span<std::byte>>, Error>
resolve_range(std::string_view operation, const GuestAddress& address, uint64_t length, const Registers& registers,
              const GuestMemory& memory);

} // namespace stopvisor::vmm
