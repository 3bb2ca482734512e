// SPDX-License-Identifier: Apache-2.0
#include "vmm/boot/linux64.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "vmm/boot/boot_params.h"
#include "vmm/boot/bzimage.h"
#include "vmm/boot/memory_layout.h"
#include "vmm/units.h"

namespace stopvisor::vmm {
namespace {

constexpr uint64_t kBootParamsGpa = kBootDataGpa;
constexpr uint64_t kGdtGpa = kBootDataGpa + 0x1000;
constexpr uint64_t kPageTablesGpa = kBootDataGpa + 0x2000; // one PML4, one PDPT, four page directories
constexpr uint64_t kCmdlineGpa = kBootDataGpa + 0x8000;
constexpr uint64_t kCmdlineRoom = kBootDataEnd - kCmdlineGpa;

// Intel SDM volume 3, 3.4.5: a flat 64-bit code segment and a flat data segment, where boot.rst wants them.
constexpr std::array<uint64_t, 4> kGdt{0, 0, 0x00af'9b00'0000'ffff, 0x00cf'9300'0000'ffff};
static_assert(kLinuxCodeSelector == 2 * sizeof(uint64_t) && kLinuxDataSelector == 3 * sizeof(uint64_t));

// Maps the first 4 GiB to themselves in 2 MiB pages (Intel SDM volume 3, 4.5).
std::vector<uint64_t> identity_map() {
  constexpr size_t kEntries = 512;
  constexpr size_t kDirectories = 4;
  constexpr uint64_t kPresentWritable = 0x3;
  constexpr uint64_t kLargePage = 0x80;
  std::vector<uint64_t> tables((2 + kDirectories) * kEntries);
  tables[0] = (kPageTablesGpa + kPageBytes) | kPresentWritable;
  for (size_t i = 0; i < kDirectories; ++i)
    tables[kEntries + i] = (kPageTablesGpa + (2 + i) * kPageBytes) | kPresentWritable;
  for (uint64_t i = 0; i < kDirectories * kEntries; ++i)
    tables[2 * kEntries + i] = i << 21 | kLargePage | kPresentWritable;
  return tables;
}

// What lies high in memory beside the kernel.
struct Neighbours {
  uint64_t first_byte = 0; // of them
  uint64_t initrd = 0;     // 0: none
  uint64_t setup_data = 0; // 0: none
};

std::expected<Neighbours, Error> load_neighbours(GuestMemory& memory, const BootImage& image,
                                                 const BzImage& kernel) {
  Neighbours result;
  result.first_byte = memory.slots().front().size_bytes;
  if (!image.device_tree.empty()) {
    result.first_byte = result.setup_data = reserve_start(memory);
    const SetupData head{0, kSetupDataDeviceTree, static_cast<uint32_t>(image.device_tree.size())};
    auto done = write_boot_data(memory, result.setup_data, std::as_bytes(std::span(&head, 1)));
    if (done)
      done = write_boot_data(memory, result.setup_data + sizeof head, image.device_tree);
    if (!done)
      return std::unexpected(done.error());
  }
  if (!image.initrd.empty()) {
    const auto initrd = initrd_gpa(memory, image.initrd.size(), kernel.highest_initrd_byte);
    if (!initrd)
      return std::unexpected(initrd.error());
    if (auto done = write_boot_data(memory, initrd->value, image.initrd); !done)
      return std::unexpected(done.error());
    result.initrd = initrd->value;
    result.first_byte = std::min(result.first_byte, initrd->value);
  }
  return result;
}

// boot.rst has a relocatable kernel run at its load address, rounded up to its alignment; its decompressor never
// goes below the preferred address, so that one lower would not need less memory.
std::expected<uint64_t, Error> load_code(GuestMemory& memory, const BootImage& image, const BzImage& kernel,
                                         uint64_t limit, std::string_view name) {
  const uint64_t gpa = (kernel.preferred_gpa + kernel.alignment - 1) & ~(kernel.alignment - 1);
  if (gpa > limit || kernel.memory_bytes > limit - gpa) {
    const std::string advice =
        gpa < kHoleStart ? memory_advice(image, gpa + kernel.memory_bytes, kernel.highest_initrd_byte) : "";
    return refuse_kernel(name, "larger than memory: it needs " + to_hex(kernel.memory_bytes) + " bytes from gpa:" +
                                   to_hex(gpa) + " on, and what it may use ends at gpa:" + to_hex(limit) + advice);
  }
  if (auto done = write_boot_data(memory, gpa, kernel.code); !done)
    return std::unexpected(done.error());
  return gpa;
}

std::unique_ptr<BootParams> boot_params(const GuestMemory& memory, const BootImage& image, const BzImage& kernel,
                                        const Neighbours& beside) {
  auto params = std::make_unique<BootParams>();
  // Also fields of later protocols than this file knows.
  std::memcpy(reinterpret_cast<std::byte*>(params.get()) + kSetupHeaderOffset, kernel.setup_header.data(),
              kernel.setup_header.size());
  params->acpi_rsdp_addr = image.rsdp.value;
  params->header.type_of_loader = kLoaderUndefined;
  params->header.ramdisk_image = static_cast<uint32_t>(beside.initrd);
  params->header.ramdisk_size = static_cast<uint32_t>(image.initrd.size());
  params->header.cmd_line_ptr = static_cast<uint32_t>(kCmdlineGpa);
  params->header.setup_data = beside.setup_data;
  for (const MemoryRegion& region : memory_map(memory, !image.device_tree.empty()))
    params->e820_table[params->e820_entries++] = {region.gpa, region.size_bytes,
                                                  region.is_ram ? kE820Ram : kE820Reserved};
  return params;
}

} // namespace

std::expected<Linux64Entry, Error> load_linux64(GuestMemory& memory, const BootImage& image,
                                                std::string_view kernel_name) {
  const auto kernel = read_bzimage(image.kernel, kernel_name);
  if (!kernel)
    return std::unexpected(kernel.error());
  if (auto fine = check_image(memory, image, std::min(kernel->max_cmdline_bytes, kCmdlineRoom - 1),
                              kDeviceTreeReserveBytes - sizeof(SetupData));
      !fine)
    return std::unexpected(fine.error());
  const auto beside = load_neighbours(memory, image, *kernel);
  if (!beside)
    return std::unexpected(beside.error());
  const auto gpa = load_code(memory, image, *kernel, beside->first_byte, kernel_name);
  if (!gpa)
    return std::unexpected(gpa.error());

  const auto params = boot_params(memory, image, *kernel, *beside);
  const auto tables = identity_map();
  std::string cmdline(image.cmdline);
  cmdline.push_back('\0');
  const std::array<std::pair<uint64_t, std::span<const std::byte>>, 4> parts{{
      {kBootParamsGpa, std::as_bytes(std::span(params.get(), 1))},
      {kGdtGpa, std::as_bytes(std::span(kGdt))},
      {kPageTablesGpa, std::as_bytes(std::span(tables))},
      {kCmdlineGpa, std::as_bytes(std::span(cmdline))},
  }};
  for (const auto& [at, bytes] : parts)
    if (auto done = write_boot_data(memory, at, bytes); !done)
      return std::unexpected(done.error());
  return Linux64Entry{*gpa + kEntry64Offset, kBootParamsGpa, kPageTablesGpa, kGdtGpa, sizeof kGdt - 1};
}

} // namespace stopvisor::vmm
