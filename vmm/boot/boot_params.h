// SPDX-License-Identifier: Apache-2.0
// What of Linux's x86 boot protocol is used here: the setup header in a bzImage, and the "zero page" handed over.
//
// Source of the layout: Linux Documentation/arch/x86/boot.rst and zero-page.rst. Offsets of the setup header are
// the same in the file and in the zero page.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace stopvisor::vmm {

inline constexpr size_t kSetupHeaderOffset = 0x1f1;
inline constexpr size_t kSetupHeaderEnd = 0x290; // in the zero page the next field begins here
inline constexpr size_t kSetupMagicOffset = 0x202;
inline constexpr std::string_view kSetupMagic = "HdrS";
inline constexpr size_t kSetupLengthOffset =
    0x201; // the header ends at 0x202 + the byte here: the operand of a jmp
inline constexpr uint16_t kBootFlag = 0xaa55;
inline constexpr uint16_t kFirst64BitProtocol = 0x020c;
inline constexpr uint64_t kEntry64Offset = 0x200; // from the load address
inline constexpr size_t kSectorBytes = 512;
inline constexpr size_t kMinSetupSectors = 4; // for which a header says 0

inline constexpr uint8_t kLoadedHigh = 0x01;       // loadflags
inline constexpr uint16_t kXloadKernel64 = 0x0001; // xloadflags, XLF_KERNEL_64
inline constexpr uint8_t kLoaderUndefined = 0xff;  // type_of_loader: one without a number of its own

#pragma pack(push, 1)

// struct setup_header, from kSetupHeaderOffset, up to protocol 2.15.
struct SetupHeader {
  uint8_t setup_sects;
  uint16_t root_flags;
  uint32_t syssize; // of the code, in units of 16 bytes
  uint16_t ram_size;
  uint16_t vid_mode;
  uint16_t root_dev;
  uint16_t boot_flag;
  uint16_t jump;
  uint32_t header;
  uint16_t version;
  uint32_t realmode_swtch;
  uint16_t start_sys_seg;
  uint16_t kernel_version;
  uint8_t type_of_loader;
  uint8_t loadflags;
  uint16_t setup_move_size;
  uint32_t code32_start;
  uint32_t ramdisk_image;
  uint32_t ramdisk_size;
  uint32_t bootsect_kludge;
  uint16_t heap_end_ptr;
  uint8_t ext_loader_ver;
  uint8_t ext_loader_type;
  uint32_t cmd_line_ptr;
  uint32_t initrd_addr_max;
  uint32_t kernel_alignment;
  uint8_t relocatable_kernel;
  uint8_t min_alignment;
  uint16_t xloadflags;
  uint32_t cmdline_size;
  uint32_t hardware_subarch;
  uint64_t hardware_subarch_data;
  uint32_t payload_offset;
  uint32_t payload_length;
  uint64_t setup_data;
  uint64_t pref_address;
  uint32_t init_size;
  uint32_t handover_offset;
  uint32_t kernel_info_offset;
};
static_assert(offsetof(SetupHeader, header) + kSetupHeaderOffset == kSetupMagicOffset);
static_assert(offsetof(SetupHeader, init_size) + kSetupHeaderOffset == 0x260);
static_assert(sizeof(SetupHeader) + kSetupHeaderOffset == 0x26c);
// What a header of protocol 2.12 has at least.
inline constexpr size_t kSetupHeaderMinEnd = 0x264;

struct E820Entry {
  uint64_t gpa;
  uint64_t size_bytes;
  uint32_t kind; // 1: RAM, 2: reserved
};
static_assert(sizeof(E820Entry) == 20);
inline constexpr uint32_t kE820Ram = 1;
inline constexpr uint32_t kE820Reserved = 2;
inline constexpr size_t kE820MaxEntries = 128;

// struct boot_params, the zero page.
struct BootParams {
  uint8_t screen_info_to_acpi[0x70];
  uint64_t acpi_rsdp_addr;
  uint8_t to_e820_entries[0x1e8 - 0x78];
  uint8_t e820_entries;
  uint8_t to_header[kSetupHeaderOffset - 0x1e9];
  SetupHeader header;
  uint8_t to_e820_table[0x2d0 - 0x26c];
  E820Entry e820_table[kE820MaxEntries];
  uint8_t rest[0x1000 - 0xcd0];
};
static_assert(sizeof(BootParams) == 4096);
static_assert(offsetof(BootParams, header) == kSetupHeaderOffset);
static_assert(offsetof(BootParams, e820_table) == 0x2d0);

// struct setup_data: the head of a piece of data in a list.
struct SetupData {
  uint64_t next; // 0: the last
  uint32_t type;
  uint32_t length; // of what follows
};
static_assert(sizeof(SetupData) == 16);
inline constexpr uint32_t kSetupDataDeviceTree = 2; // SETUP_DTB

#pragma pack(pop)

} // namespace stopvisor::vmm
