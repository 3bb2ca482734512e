// SPDX-License-Identifier: Apache-2.0
// Looks at and changes the guest inside one stop.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <vector>

#include "stopper/function_ref.h"
#include "vmm/error.h"
#include "vmm/guest_address.h"
#include "vmm/vm.h"

namespace stopvisor::vmm {

class LinuxKernel;

// Host bytes behind a range of guest addresses, in order.
using Pieces = std::vector<std::span<std::byte>>;

// Runs `what` while the guest is held, also where it is held already. RETURNS: what it returns; kBusy where the
// guest was not held by `deadline`, kFailed where the VM ends. CONTEXT: blocks.
[[nodiscard]] std::expected<void, Error> under_stop(Vm& vm, const char* operation,
                                                    std::chrono::steady_clock::time_point deadline,
                                                    stopper::FunctionRef<std::expected<void, Error>()> what);

// `kernel`: whose symbols a kSymbol is looked up among; not looked at for other addresses, and may be null then.
// RETURNS: what resolve_range(), Vm::registers() and symbol_address() return.
// CONTEXT: under a stop where the address is not physical.
[[nodiscard]] std::expected<Pieces, Error> find_pieces(Vm& vm, const char* operation, const GuestAddress& address,
                                                       uint64_t length, const LinuxKernel* kernel);

// `to` and `from` are exactly as long as the pieces together.
void copy_out(const Pieces& from, std::span<std::byte> to);
void copy_in(std::span<const std::byte> from, const Pieces& to);

} // namespace stopvisor::vmm
