// SPDX-License-Identifier: Apache-2.0
#include "vmm/boot/pvh.h"

#include <array>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "vmm/boot/elf.h"
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
static_assert(kCmdlineGpa + kMaxCmdlineBytes + 1 <= kLowReservedEnd);

std::unexpected<Error> refuse(std::string_view object, std::string reason, Status status = Status::kFailed) {
  return std::unexpected(Error{"load kernel", std::string(object), std::move(reason), status});
}

uint64_t low_top(const GuestMemory& memory) {
  return memory.slots().front().size_bytes;
}

// Where the device tree begins and the initrd ends, whether there is a tree or not.
uint64_t reserve_start(const GuestMemory& memory) {
  return (low_top(memory) - kDeviceTreeReserveBytes) & ~(kPageBytes - 1);
}

std::expected<void, Error> write_boot_data(GuestMemory& memory, uint64_t gpa, std::span<const std::byte> bytes) {
  if (!memory.write(Gpa{gpa}, bytes))
    return refuse("gpa:" + to_hex(gpa), "boot data does not fit into memory");
  return {};
}

// Everything load_pvh() places beside the segments.
struct Plan {
  pvh::StartInfo start_info{};
  std::vector<pvh::Module> modules;
  std::vector<pvh::MemoryMapEntry> map;
};

std::vector<pvh::MemoryMapEntry> memory_map(const GuestMemory& memory, bool has_device_tree) {
  using enum pvh::MemoryKind;
  const uint64_t top = low_top(memory);
  const uint64_t ram_end = has_device_tree ? reserve_start(memory) : top;
  std::vector<pvh::MemoryMapEntry> map{{0, kBootDataGpa, kRam, 0},
                                       {kBootDataGpa, kLowReservedEnd - kBootDataGpa, kReserved, 0},
                                       {kLowReservedEnd, ram_end - kLowReservedEnd, kRam, 0}};
  if (ram_end != top)
    map.push_back({ram_end, top - ram_end, kReserved, 0});
  for (const MemorySlot& slot : memory.slots().subspan(1))
    map.push_back({slot.base.value, slot.size_bytes, kRam, 0});
  return map;
}

std::expected<void, Error> check(const GuestMemory& memory, const PvhImage& image) {
  if (memory.slots().empty() || memory.slots().front().size_bytes < kMinBootMemoryBytes)
    return refuse("memory", "too small: a kernel needs at least " + std::to_string(kMinBootMemoryBytes) + " bytes");
  if (image.cmdline.size() > kMaxCmdlineBytes)
    return refuse("command line",
                  "too long: " + std::to_string(image.cmdline.size()) + " bytes, at most " +
                      std::to_string(kMaxCmdlineBytes),
                  Status::kUsage);
  if (image.cmdline.find('\0') != std::string_view::npos)
    return refuse("command line", "holds a NUL", Status::kUsage);
  if (image.device_tree.size() > kDeviceTreeReserveBytes)
    return refuse("device tree", "too large: " + std::to_string(image.device_tree.size()) + " bytes, at most " +
                                     std::to_string(kDeviceTreeReserveBytes));
  return {};
}

// Loads one segment, which must end below `limit` where it lies in low memory.
std::expected<void, Error> load_segment(GuestMemory& memory, const PvhImage& image, const ElfSegment& segment,
                                        std::string_view kernel_name, uint64_t limit) {
  const std::string what = "segment " + std::to_string(segment.index) + " (" + to_hex(segment.memory_bytes) +
                           " bytes at gpa:" + to_hex(segment.gpa) + ")";
  const uint64_t end = segment.gpa + segment.memory_bytes;
  const auto to = memory.range(Gpa{segment.gpa}, segment.memory_bytes);
  if (to.empty())
    return refuse(kernel_name, what + " lies outside memory");
  if (segment.gpa < kLowReservedEnd && end > kBootDataGpa)
    return refuse(kernel_name, what + " overlaps the boot data at gpa:" + to_hex(kBootDataGpa) +
                                   " to gpa:" + to_hex(kLowReservedEnd));
  if (segment.gpa < kHoleStart && end > limit)
    return refuse(kernel_name, what + " leaves no room for the initrd or the device tree at gpa:" + to_hex(limit));
  if (segment.file_bytes != 0)
    std::memcpy(to.data(), image.kernel.data() + segment.file_offset, segment.file_bytes);
  return {};
}

std::expected<void, Error> load_segments(GuestMemory& memory, const PvhImage& image, const ElfKernel& kernel,
                                         std::string_view kernel_name, uint64_t limit) {
  for (const ElfSegment& segment : kernel.segments) {
    if (auto loaded = load_segment(memory, image, segment, kernel_name, limit); !loaded)
      return loaded;
  }
  return {};
}

// Writes initrd and device tree high, and lists them. `limit` becomes the first byte they use.
std::expected<void, Error> load_modules(GuestMemory& memory, const PvhImage& image, Plan& plan, uint64_t& limit) {
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

std::expected<void, Error> write_plan(GuestMemory& memory, const PvhImage& image, Plan& plan) {
  plan.start_info.magic = pvh::kStartInfoMagic;
  plan.start_info.version = pvh::kStartInfoVersion;
  plan.start_info.module_count = static_cast<uint32_t>(plan.modules.size());
  plan.start_info.module_list_gpa = plan.modules.empty() ? 0 : kModuleListGpa;
  plan.start_info.cmdline_gpa = kCmdlineGpa;
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

std::expected<Gpa, Error> initrd_gpa(const GuestMemory& memory, uint64_t initrd_bytes) {
  const uint64_t end =
      memory.slots().empty() || low_top(memory) < kMinBootMemoryBytes ? kLowReservedEnd : reserve_start(memory);
  const uint64_t room = end - kLowReservedEnd;
  if (initrd_bytes > room)
    return std::unexpected(Error{"load initrd", "",
                                 "does not fit into memory: " + std::to_string(initrd_bytes) + " bytes, at most " +
                                     std::to_string(room),
                                 Status::kFailed});
  return Gpa{(end - initrd_bytes) & ~(kPageBytes - 1)};
}

std::expected<BootEntry, Error> load_pvh(GuestMemory& memory, const PvhImage& image, std::string_view kernel_name) {
  const auto kernel = read_elf(image.kernel, kernel_name);
  if (!kernel)
    return std::unexpected(kernel.error());
  Plan plan;
  uint64_t limit = kHoleStart; // nothing above the kernel
  auto done = check(memory, image);
  if (done)
    done = load_modules(memory, image, plan, limit);
  if (done)
    done = load_segments(memory, image, *kernel, kernel_name, limit);
  if (done) {
    plan.map = memory_map(memory, !image.device_tree.empty());
    done = write_plan(memory, image, plan);
  }
  if (!done)
    return std::unexpected(std::move(done.error()));
  return BootEntry{kernel->pvh_entry, kBootDataGpa};
}

} // namespace stopvisor::vmm
