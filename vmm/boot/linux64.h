// SPDX-License-Identifier: Apache-2.0
// Puts a Linux bzImage, its initrd and the zero page into fresh guest memory, by the 64-bit boot protocol.
//
// The protocol is Linux's Documentation/arch/x86/boot.rst: vCPU 0 starts in 64-bit mode, with page tables that map
// the first 4 GiB to themselves, 0x200 bytes into the kernel, RSI pointing at boot_params. No code of the kernel's
// 16-bit setup runs. memory_layout.h has the map; the boot data is:
//
//   0x90000  boot_params     0x91000  GDT     0x92000  page tables     0x98000  command line
//
// A device tree goes along as setup_data (SETUP_DTB), for kernels that read one.
#pragma once

#include <expected>
#include <string_view>

#include "vmm/boot/image.h"
#include "vmm/error.h"
#include "vmm/guest_memory.h"

namespace stopvisor::vmm {

// Loads everything. The memory must be fresh (all zeros). `kernel_name` is for errors. CONTEXT: before any vCPU
// runs. RETURNS: kUsage for a command line longer than the kernel takes, or with a NUL; kFailed for a kernel
// read_bzimage() refuses, a kernel larger than memory, an initrd that does not fit. Memory may be partly written
// where it fails.
[[nodiscard]] std::expected<Linux64Entry, Error> load_linux64(GuestMemory& memory, const BootImage& image,
                                                              std::string_view kernel_name);

} // namespace stopvisor::vmm
