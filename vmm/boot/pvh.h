// SPDX-License-Identifier: Apache-2.0
// Puts a PVH kernel, its modules and hvm_start_info into fresh guest memory.
//
// PVH is the boot protocol of the probe guest and of ELF kernels: 32-bit protected mode without paging, EBX
// points at struct hvm_start_info (xen/docs/misc/pvh.pandoc; the layout is
// xen/include/public/arch-x86/hvm/start_info.h, version 1).
//
// memory_layout.h has the map. Module 0 is the initrd, as Linux has it; the device tree is the last module, named
// "dtb" by its command line.
#pragma once

#include <expected>
#include <string_view>

#include "vmm/boot/image.h"
#include "vmm/error.h"
#include "vmm/guest_memory.h"

namespace stopvisor::vmm {

// Loads everything. The memory must be fresh (all zeros): what a segment has beyond its file's bytes is not
// written. `kernel_name` is for errors. CONTEXT: before any vCPU runs.
// RETURNS: kUsage for a command line that is too long or holds a NUL; kFailed for a kernel read_elf()
// refuses, too little memory, a segment outside RAM or over the boot data, an initrd that does not fit.
// Memory may be partly written where it fails.
[[nodiscard]] std::expected<PvhEntry, Error> load_pvh(GuestMemory& memory, const BootImage& image,
                                                      std::string_view kernel_name);

} // namespace stopvisor::vmm
