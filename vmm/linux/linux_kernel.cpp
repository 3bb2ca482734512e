// SPDX-License-Identifier: Apache-2.0
#include "vmm/linux/linux_kernel.h"

#include <algorithm>
#include <functional>
#include <iterator>
#include <utility>
#include <vector>

#include "vmm/linux/kallsyms.h"

namespace stopvisor::vmm {
namespace {

// With page table isolation a process has two top tables in a pair of pages; the kernel's is the even one
// (Linux, arch/x86/entry/calling.h: PTI_USER_PGTABLE_BIT).
constexpr uint64_t kUserTableBit = 1ULL << 12;
constexpr size_t kMostTries = 8; // page tables to look by: each takes a copy of the image

bool same_tables(const Registers& one, const Registers& other) {
  return one.cr0 == other.cr0 && one.cr3 == other.cr3 && one.cr4 == other.cr4 && one.efer == other.efer;
}

// Whose page tables to look by: those of vCPUs in the kernel first, each as it is, then as its kernel half.
std::vector<Registers> tables_of(std::span<const Registers> vcpus) {
  std::vector<Registers> all;
  const auto in_kernel = [](const Registers& registers) { return registers.cpl() == 0; };
  std::ranges::copy_if(vcpus, std::back_inserter(all), in_kernel);
  std::ranges::copy_if(vcpus, std::back_inserter(all), std::not_fn(in_kernel));
  const size_t as_they_are = all.size();
  for (size_t i = 0; i < as_they_are; ++i) {
    Registers kernel_half = all[i];
    kernel_half.cr3 &= ~kUserTableBit;
    all.push_back(kernel_half);
  }
  std::vector<Registers> tables;
  for (const Registers& registers : all)
    if (std::ranges::none_of(tables, [&](const Registers& known) { return same_tables(known, registers); }))
      tables.push_back(registers);
  if (tables.size() > kMostTries)
    tables.resize(kMostTries);
  return tables;
}

} // namespace

std::expected<LinuxKernel, std::string>
LinuxKernel::find(const GuestMemory& memory, std::span<const Registers> vcpus, const SymbolFile* file) {
  std::string reason = "there is no vCPU to look by";
  bool first = true;
  for (const Registers& paging : tables_of(vcpus)) {
    auto found = find_by(memory, paging, file);
    if (found)
      return found;
    if (std::exchange(first, false) || reason.starts_with("nothing is mapped") ||
        reason.starts_with("the vCPU is not"))
      reason = std::move(found.error()); // of the tables that led farthest
  }
  return std::unexpected(std::move(reason));
}

std::expected<LinuxKernel, std::string> LinuxKernel::find_by(const GuestMemory& memory, const Registers& paging,
                                                             const SymbolFile* file) {
  const auto image = KernelImage::copy(memory, paging);
  if (!image)
    return std::unexpected(image.error());
  LinuxKernel kernel;
  kernel.paging_ = paging;
  const auto accept = [&](const SymbolTable& symbols) -> std::expected<void, std::string> {
    auto identity = identify(*image, symbols);
    if (!identity)
      return std::unexpected(std::move(identity.error()));
    kernel.identity_ = *std::move(identity);
    return {};
  };
  auto own = find_kallsyms(*image, accept);
  if (file != nullptr) {
    auto fit = fit_to_image(*file, *image, own ? &*own : nullptr);
    if (!fit)
      return std::unexpected(std::move(fit.error()));
    kernel.slide_ = fit->slide;
    kernel.identity_ = std::move(fit->identity);
    kernel.symbols_ = std::move(fit->symbols);
  } else if (own) {
    kernel.symbols_ = *std::move(own);
  } else {
    return std::unexpected(std::move(own.error()));
  }
  const auto text = kernel.symbols_.address_of("_text");
  kernel.text_ = text ? *text : kernel.symbols_.address_of("_stext").value_or(0);
  if (file == nullptr)
    kernel.slide_ = kernel.text_ - kUsualTextAddress;
  kernel.layout_ = find_layout(*image, kernel.symbols_);
  kernel.use_own_tables(memory);
  return kernel;
}

// A process' tables go away with it; those the kernel began with stay, and map all of the kernel.
void LinuxKernel::use_own_tables(const GuestMemory& memory) {
  if (!layout_.top_table)
    return;
  const auto top = memory_of(memory).physical(*layout_.top_table);
  if (!top)
    return;
  Registers own = paging_;
  own.cr3 = top->value;
  if (identity_.holds_in(KernelMemory(memory, own)))
    paging_ = own;
}

} // namespace stopvisor::vmm
