// SPDX-License-Identifier: Apache-2.0
// Where what a kernel is handed lies in guest memory, whichever protocol boots it.
//
//   0x00000000  RAM
//   0x00090000  reserved: boot data (start_info or boot_params, command line, page tables)
//   0x000e0000  reserved: ACPI tables, then the VM generation ID, then the reset vector
//   0x00100000  RAM: the kernel; the initrd ends where the device tree's reserve begins
//   low top - 256 KiB  reserved: the device tree, where one is given
//   4 GiB       RAM that did not fit below the hole
//
// The boot data lies below 1 MiB, since Linux reads it through early page tables that map the first GiB alone.
#pragma once

#include <cstdint>
#include <expected>
#include <string>
#include <string_view>
#include <vector>

#include "vmm/address.h"
#include "vmm/boot/image.h"
#include "vmm/error.h"
#include "vmm/guest_memory.h"

namespace stopvisor::vmm {

inline constexpr uint64_t kBootDataGpa = 0x9'0000;
inline constexpr uint64_t kBootDataEnd = 0xa'0000;
inline constexpr uint64_t kLowReservedEnd = 0x10'0000;
inline constexpr uint64_t kDeviceTreeReserveBytes = 256 << 10;
// Linux's COMMAND_LINE_SIZE on x86, less its NUL: a longer one would be cut there without a word.
inline constexpr uint64_t kMaxCmdlineBytes = 2047;
inline constexpr uint64_t kMinBootMemoryBytes = 2 << 20;

struct MemoryRegion {
  uint64_t gpa = 0;
  uint64_t size_bytes = 0;
  bool is_ram = false; // else reserved
};

// What the guest is told of its memory, by address. CONTEXT: any thread. `memory` is large enough (check_image()).
[[nodiscard]] std::vector<MemoryRegion> memory_map(const GuestMemory& memory, bool has_device_tree);

// Where the device tree begins and the initrd ends, whether there is a tree or not. The same.
[[nodiscard]] uint64_t reserve_start(const GuestMemory& memory);

// Where an initrd of this size will be put: known before the device tree that names it is made. No byte of it lies
// above `highest`. CONTEXT: any thread, does not block.
// RETURNS: kFailed where it does not fit between 1 MiB and the reserve.
[[nodiscard]] std::expected<Gpa, Error> initrd_gpa(const GuestMemory& memory, uint64_t initrd_bytes,
                                                   uint64_t highest = kHoleStart - 1);

// What somebody can do whose kernel needs low memory up to `kernel_end`, below the initrd and the device tree of
// `image`: "; --memory 18M would do", the fewest MiB. Empty where no memory would. CONTEXT: any thread, does not
// block.
[[nodiscard]] std::string memory_advice(const BootImage& image, uint64_t kernel_end,
                                        uint64_t highest_initrd_byte = kHoleStart - 1);

// Checks what does not depend on the kernel's kind. `tree_room` is what the device tree may take of its reserve.
// RETURNS: kUsage for a command line of more than `max_cmdline_bytes` or with a NUL; kFailed for too little memory
// or too large a device tree.
[[nodiscard]] std::expected<void, Error> check_image(const GuestMemory& memory, const BootImage& image,
                                                     uint64_t max_cmdline_bytes,
                                                     uint64_t tree_room = kDeviceTreeReserveBytes);

// Writes boot data. RETURNS: kFailed where it does not fit into memory.
[[nodiscard]] std::expected<void, Error> write_boot_data(GuestMemory& memory, uint64_t gpa,
                                                         std::span<const std::byte> bytes);

// "load kernel: OBJECT: reason".
[[nodiscard]] std::unexpected<Error> refuse_kernel(std::string_view object, std::string reason,
                                                   Status status = Status::kFailed);

} // namespace stopvisor::vmm
