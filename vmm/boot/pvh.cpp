// SPDX-License-Identifier: Apache-2.0
#include "vmm/boot/pvh.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "vmm/boot/elf.h"
#include "vmm/boot/memory_layout.h"
#include "vmm/boot/pvh_layout.h"
#include "vmm/units.h"

namespace stopvisor::vmm {
namespace {

// The boot data, from kBootDataGpa on.
constexpr uint64_t kModuleListGpa = kBootDataGpa + 0x100;
constexpr uint64_t kDeviceTreeNameGpa = kBootDataGpa + 0x200;
constexpr uint64_t kMemoryMapGpa = kBootDataGpa + 0x400;
constexpr uint64_t kCmdlineGpa = kBootDataGpa + 0x1000;
constexpr std::string_view kDeviceTreeName("dtb\0", 4); // with its NUL
static_assert(kCmdlineGpa + kMaxCmdlineBytes + 1 <= kBootDataEnd);

// Everything load_pvh() places beside the segments.
struct Plan {
  pvh::StartInfo start_info{};
  std::vector<pvh::Module> modules;
  std::vector<pvh::MemoryMapEntry> map;
};

// Loads one segment, which must end below `limit` where it lies in low memory. `advice` is for whoever has too
// little.
std::expected<void, Error> load_segment(GuestMemory& memory, const BootImage& image, const ElfSegment& segment,
                                        std::string_view kernel_name, uint64_t limit, const std::string& advice) {
  const std::string what = "segment " + std::to_string(segment.index) + " (" + to_hex(segment.memory_bytes) +
                           " bytes at gpa:" + to_hex(segment.gpa) + ")";
  const uint64_t end = segment.gpa + segment.memory_bytes;
  const auto to = memory.range(Gpa{segment.gpa}, segment.memory_bytes);
  if (to.empty())
    return refuse_kernel(kernel_name, what + " lies outside memory" + advice);
  if (segment.gpa < kLowReservedEnd && end > kBootDataGpa)
    return refuse_kernel(kernel_name, what + " overlaps the boot data at gpa:" + to_hex(kBootDataGpa) +
                                          " to gpa:" + to_hex(kLowReservedEnd));
  if (segment.gpa < kHoleStart && end > limit)
    return refuse_kernel(
        kernel_name, what + " leaves no room for the initrd or the device tree at gpa:" + to_hex(limit) + advice);
  if (segment.file_bytes != 0)
    std::memcpy(to.data(), image.kernel.data() + segment.file_offset, segment.file_bytes);
  return {};
}

std::expected<void, Error> load_segments(GuestMemory& memory, const BootImage& image, const ElfKernel& kernel,
                                         std::string_view kernel_name, uint64_t limit) {
  uint64_t end = 0;
  for (const ElfSegment& segment : kernel.segments)
    end = std::max(end, segment.gpa + segment.memory_bytes);
  const std::string advice = memory_advice(image, end);
  for (const ElfSegment& segment : kernel.segments) {
    if (auto loaded = load_segment(memory, image, segment, kernel_name, limit, advice); !loaded)
      return loaded;
  }
  return {};
}

// Writes initrd and device tree high, and lists them. `limit` becomes the first byte they use.
std::expected<void, Error> load_modules(GuestMemory& memory, const BootImage& image, Plan& plan, uint64_t& limit) {
  if (!image.device_tree.empty()) {
    limit = reserve_start(memory);
    if (auto written = write_boot_data(memory, limit, image.device_tree); !written)
      return written;
  }
  if (!image.initrd.empty()) {
    const auto initrd = initrd_gpa(memory, image.initrd.size());
    if (!initrd)
      return std::unexpected(initrd.error());
    limit = initrd->value;
    if (auto written = write_boot_data(memory, limit, image.initrd); !written)
      return written;
    plan.modules.push_back({limit, image.initrd.size(), 0, 0});
  }
  if (!image.device_tree.empty())
    plan.modules.push_back({reserve_start(memory), image.device_tree.size(), kDeviceTreeNameGpa, 0});
  return {};
}

std::expected<void, Error> write_plan(GuestMemory& memory, const BootImage& image, Plan& plan) {
  plan.start_info.magic = pvh::kStartInfoMagic;
  plan.start_info.version = pvh::kStartInfoVersion;
  plan.start_info.module_count = static_cast<uint32_t>(plan.modules.size());
  plan.start_info.module_list_gpa = plan.modules.empty() ? 0 : kModuleListGpa;
  plan.start_info.cmdline_gpa = kCmdlineGpa;
  plan.start_info.rsdp_gpa = image.rsdp.value;
  plan.start_info.memory_map_gpa = kMemoryMapGpa;
  plan.start_info.memory_map_entries = static_cast<uint32_t>(plan.map.size());

  std::string cmdline(image.cmdline);
  cmdline.push_back('\0');
  const std::array<std::pair<uint64_t, std::span<const std::byte>>, 5> parts{{
      {kBootDataGpa, std::as_bytes(std::span(&plan.start_info, 1))},
      {kModuleListGpa, std::as_bytes(std::span(plan.modules))},
      {kDeviceTreeNameGpa, std::as_bytes(std::span(kDeviceTreeName))},
      {kMemoryMapGpa, std::as_bytes(std::span(plan.map))},
      {kCmdlineGpa, std::as_bytes(std::span(cmdline))},
  }};
  for (const auto& [gpa, bytes] : parts) {
    if (bytes.empty())
      continue;
    if (auto written = write_boot_data(memory, gpa, bytes); !written)
      return written;
  }
  return {};
}

} // namespace

std::expected<PvhEntry, Error> load_pvh(GuestMemory& memory, const BootImage& image, std::string_view kernel_name) {
  const auto kernel = read_elf(image.kernel, kernel_name);
  if (!kernel)
    return std::unexpected(kernel.error());
  Plan plan;
  uint64_t limit = kHoleStart; // nothing above the kernel
  auto done = check_image(memory, image, kMaxCmdlineBytes);
  if (done)
    done = load_modules(memory, image, plan, limit);
  if (done)
    done = load_segments(memory, image, *kernel, kernel_name, limit);
  if (done) {
    for (const MemoryRegion& region : memory_map(memory, !image.device_tree.empty()))
      plan.map.push_back(
          {region.gpa, region.size_bytes, region.is_ram ? pvh::MemoryKind::kRam : pvh::MemoryKind::kReserved, 0});
    done = write_plan(memory, image, plan);
  }
  if (!done)
    return std::unexpected(std::move(done.error()));
  return PvhEntry{kernel->pvh_entry, kBootDataGpa};
}

} // namespace stopvisor::vmm
