// SPDX-License-Identifier: Apache-2.0
#include "vmm/control/guest_symbols.h"

#include <string>
#include <utility>

#include "vmm/units.h"

namespace stopvisor::vmm {
namespace {

constexpr size_t kShownCandidates = 8;

std::string candidates_text(const std::vector<Symbol>& symbols) {
  std::string text = std::to_string(symbols.size()) + " symbols have that name: ";
  for (size_t i = 0; i < symbols.size() && i < kShownCandidates; ++i)
    text += (i == 0 ? "gva:" : ", gva:") + to_hex(symbols[i].address);
  return text + (symbols.size() > kShownCandidates ? ", ..." : "") + "; give the address of the one you mean";
}

// Per-CPU variables are numbered from 0, or lie in a section of the image of which each CPU has a copy.
bool is_per_cpu(uint64_t address, const SymbolTable& symbols) {
  if (!is_kernel_address(address))
    return true;
  const auto start = symbols.address_of("__per_cpu_start");
  const auto end = symbols.address_of("__per_cpu_end");
  return start && end && address >= *start && address < *end;
}

} // namespace

std::expected<uint64_t, Error> symbol_address(const char* operation, const GuestAddress& address,
                                              const LinuxKernel& kernel, const GuestMemory& memory) {
  const auto refuse = [&](std::string reason) {
    return std::unexpected(Error{operation, to_string(address), std::move(reason), Status::kRefused});
  };
  const auto symbols = kernel.symbols().named(address.symbol);
  if (symbols.empty())
    return refuse("the kernel has no such symbol");
  if (symbols.size() > 1)
    return refuse(candidates_text(symbols));
  const uint64_t at = symbols.front().address + address.value;
  if (!is_per_cpu(symbols.front().address, kernel.symbols())) {
    if (address.cpu != 0)
      return refuse("is no per-CPU variable, and takes no @CPU");
    return at;
  }
  const KernelLayout& layout = kernel.layout();
  const KernelMemory from = kernel.memory_of(memory);
  const auto count = layout.cpu_count ? from.value<uint32_t>(*layout.cpu_count) : std::nullopt;
  if (!layout.cpu_offsets || !count || address.cpu >= *count)
    return refuse("is a per-CPU variable, and the kernel has no CPU " + std::to_string(address.cpu));
  const auto offset = from.value<uint64_t>(*layout.cpu_offsets + uint64_t{address.cpu} * sizeof(uint64_t));
  if (!offset)
    return refuse("is a per-CPU variable, and the kernel's __per_cpu_offset cannot be read");
  return at + *offset;
}

} // namespace stopvisor::vmm
