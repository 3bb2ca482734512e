// SPDX-License-Identifier: Apache-2.0
// Puts a PVH kernel, its modules and hvm_start_info into fresh guest memory.
//
// PVH is the boot protocol of the probe guest and of ELF kernels: 32-bit protected mode without paging, EBX
// points at struct hvm_start_info (xen/docs/misc/pvh.pandoc; the layout is
// xen/include/public/arch-x86/hvm/start_info.h, version 1).
//
//   0x00000000  RAM
//   0x00090000  reserved: start_info, memory map, module list, command line; then the BIOS area up to 1 MiB
//   0x00100000  RAM: the kernel; the initrd ends where the device tree's reserve begins
//   low top - 256 KiB  reserved: the device tree, where one is given
//   4 GiB       RAM that did not fit below the hole
//
// What start_info points at lies below 1 MiB, since Linux reads it through early page tables that map the
// first GiB alone. Module 0 is the initrd, as Linux has it; the device tree is the last module, named "dtb"
// by its command line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string_view>

#include "vmm/address.h"
#include "vmm/error.h"
#include "vmm/guest_memory.h"

namespace stopvisor::vmm {

inline constexpr uint64_t kBootDataGpa = 0x9'0000;
inline constexpr uint64_t kLowReservedEnd = 0x10'0000;
inline constexpr uint64_t kDeviceTreeReserveBytes = 256 << 10;
// Linux's COMMAND_LINE_SIZE on x86, less its NUL: a longer one would be cut there without a word.
inline constexpr uint64_t kMaxCmdlineBytes = 2047;
inline constexpr uint64_t kMinBootMemoryBytes = 2 << 20;

// What is booted. Nothing of it is needed after load_pvh() returned.
struct PvhImage {
  std::span<const std::byte> kernel; // an ELF file
  std::span<const std::byte> initrd; // empty: none
  std::string_view cmdline;
  std::span<const std::byte> device_tree; // flattened; empty: none
};

// vCPU 0 starts at `rip` with EBX = `rbx`; kvm's caller sets the rest as pvh.pandoc has it.
struct BootEntry {
  uint64_t rip = 0;
  uint64_t rbx = 0;
};

// Where an initrd of this size will be put: known before the device tree that names it is made.
// CONTEXT: any thread, does not block. RETURNS: kFailed where it does not fit between 1 MiB and the reserve.
[[nodiscard]] std::expected<Gpa, Error> initrd_gpa(const GuestMemory& memory, uint64_t initrd_bytes);

// Loads everything. The memory must be fresh (all zeros): what a segment has beyond its file's bytes is not
// written. `kernel_name` is for errors. CONTEXT: before any vCPU runs.
// RETURNS: kUsage for a command line that is too long or holds a NUL; kFailed for a kernel read_elf()
// refuses, too little memory, a segment outside RAM or over the boot data, an initrd that does not fit.
// Memory may be partly written where it fails.
[[nodiscard]] std::expected<BootEntry, Error> load_pvh(GuestMemory& memory, const PvhImage& image,
                                                       std::string_view kernel_name);

} // namespace stopvisor::vmm
