// SPDX-License-Identifier: Apache-2.0
// A Linux kernel found in a guest's memory: its symbols, which kernel it is, and where it keeps things.
//
// Everything here was written by the guest, which may forge all of it: it decides what we report, never what we
// touch (docs/explanation/knowing-the-guest.md).
#pragma once

#include <cstdint>
#include <expected>
#include <span>
#include <string>

#include "vmm/linux/kernel_identity.h"
#include "vmm/linux/kernel_layout.h"
#include "vmm/linux/kernel_memory.h"
#include "vmm/linux/symbol_file.h"
#include "vmm/linux/symbol_table.h"

namespace stopvisor::vmm {

// Where x86-64 kernels are linked to (CONFIG_PHYSICAL_START, 16 MiB in every distribution's).
inline constexpr uint64_t kUsualTextAddress = 0xffff'ffff'8100'0000;

class LinuxKernel {
public:
  // Looks for a kernel by the page tables of `vcpus`, with the symbols it carries itself, or with those of `file`,
  // whose slide is searched for and then checked (file may be null; it is not kept).
  // CONTEXT: any thread, with or without a stop; takes tens of milliseconds, the more the more a hostile guest
  // maps, but a bounded time. Without a stop the tables may change under us: what is returned is to be verified.
  // RETURNS: what was not found, or what of the file does not fit, in words.
  [[nodiscard]] static std::expected<LinuxKernel, std::string>
  find(const GuestMemory& memory, std::span<const Registers> vcpus, const SymbolFile* file);

  // Whether it is still there: the bytes that identify it are compared. CONTEXT: any thread, does not block.
  [[nodiscard]] bool is_in(const GuestMemory& memory) const { return identity_.holds_in(memory_of(memory)); }
  // The kernel's memory by its own page tables, so that it does not matter what a vCPU is doing.
  [[nodiscard]] KernelMemory memory_of(const GuestMemory& memory) const { return {memory, paging_}; }

  [[nodiscard]] const SymbolTable& symbols() const noexcept { return symbols_; }
  [[nodiscard]] const KernelIdentity& identity() const noexcept { return identity_; }
  [[nodiscard]] const KernelLayout& layout() const noexcept { return layout_; }
  [[nodiscard]] const Registers& paging() const noexcept { return paging_; }
  // Where the kernel's text begins, and how far that is from where it was linked to: the file's, or the usual one.
  [[nodiscard]] uint64_t text() const noexcept { return text_; }
  [[nodiscard]] uint64_t slide() const noexcept { return slide_; }

private:
  LinuxKernel() = default;
  [[nodiscard]] static std::expected<LinuxKernel, std::string>
  find_by(const GuestMemory& memory, const Registers& paging, const SymbolFile* file);
  void use_own_tables(const GuestMemory& memory);

  SymbolTable symbols_;
  KernelIdentity identity_;
  KernelLayout layout_;
  Registers paging_;
  uint64_t text_ = 0;
  uint64_t slide_ = 0;
};

} // namespace stopvisor::vmm
