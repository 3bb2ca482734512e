// SPDX-License-Identifier: Apache-2.0
#include "vmm/control/guest_access.h"

#include <cstring>

#include "vmm/control/guest_symbols.h"
#include "vmm/guest_range.h"

namespace stopvisor::vmm {
namespace {

// How long others' callbacks may prolong the hold that ours began.
constexpr std::chrono::milliseconds kHoldBudget{1};

} // namespace

std::expected<void, Error> under_stop(Vm& vm, const char* operation, std::chrono::steady_clock::time_point deadline,
                                      stopper::FunctionRef<std::expected<void, Error>()> what) {
  std::expected<void, Error> result;
  auto run = [&](stopper::StopContext&) {
    result = what();
    return result ? 0 : 1;
  };
  const auto outcome = vm.stops().run(run, {.deadline = deadline, .budget = kHoldBudget});
  if (!outcome)
    return std::unexpected(vm.explain(operation, outcome.error()));
  return result;
}

std::expected<Pieces, Error> find_pieces(Vm& vm, const char* operation, const GuestAddress& address,
                                         uint64_t length, const LinuxKernel* kernel) {
  Registers registers;
  if (address.kind == GuestAddress::Kind::kSymbol && kernel != nullptr) {
    const auto at = symbol_address(operation, address, *kernel, vm.memory());
    if (!at)
      return std::unexpected(at.error());
    const GuestAddress there{GuestAddress::Kind::kVirtual, *at, 0, {}};
    return resolve_range(operation, there, length, kernel->paging(), vm.memory());
  }
  if (address.kind == GuestAddress::Kind::kVirtual) {
    auto read = vm.registers(address.cpu);
    if (!read) {
      read.error().operation = operation;
      return std::unexpected(read.error());
    }
    registers = *read;
  }
  return resolve_range(operation, address, length, registers, vm.memory());
}

void copy_out(const Pieces& from, std::span<std::byte> to) {
  for (const std::span<std::byte> piece : from) {
    std::memcpy(to.data(), piece.data(), piece.size());
    to = to.subspan(piece.size());
  }
}

void copy_in(std::span<const std::byte> from, const Pieces& to) {
  for (const std::span<std::byte> piece : to) {
    std::memcpy(piece.data(), from.data(), piece.size());
    from = from.subspan(piece.size());
  }
}

} // namespace stopvisor::vmm
