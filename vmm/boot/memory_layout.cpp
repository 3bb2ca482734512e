// SPDX-License-Identifier: Apache-2.0
#include "vmm/boot/memory_layout.h"

#include <algorithm>
#include <utility>

#include "vmm/units.h"

namespace stopvisor::vmm {
namespace {

uint64_t low_top(const GuestMemory& memory) {
  return memory.slots().front().size_bytes;
}

uint64_t reserve_below(uint64_t low_top) {
  return (low_top - kDeviceTreeReserveBytes) & ~(kPageBytes - 1);
}

// Where an initrd may end at most, with its last byte no higher than `highest`.
uint64_t initrd_end(uint64_t low_top, uint64_t highest) {
  return std::max(std::min(reserve_below(low_top) - 1, highest) + 1, kLowReservedEnd);
}

bool too_small(const GuestMemory& memory) {
  return memory.slots().empty() || low_top(memory) < kMinBootMemoryBytes;
}

} // namespace

std::unexpected<Error> refuse_kernel(std::string_view object, std::string reason, Status status) {
  return std::unexpected(Error{"load kernel", std::string(object), std::move(reason), status});
}

uint64_t reserve_start(const GuestMemory& memory) {
  return reserve_below(low_top(memory));
}

std::vector<MemoryRegion> memory_map(const GuestMemory& memory, bool has_device_tree) {
  const uint64_t top = low_top(memory);
  const uint64_t ram_end = has_device_tree ? reserve_start(memory) : top;
  std::vector<MemoryRegion> map{{0, kBootDataGpa, true},
                                {kBootDataGpa, kLowReservedEnd - kBootDataGpa, false},
                                {kLowReservedEnd, ram_end - kLowReservedEnd, true}};
  if (ram_end != top)
    map.push_back({ram_end, top - ram_end, false});
  for (const MemorySlot& slot : memory.slots().subspan(1))
    map.push_back({slot.base.value, slot.size_bytes, true});
  return map;
}

std::expected<Gpa, Error> initrd_gpa(const GuestMemory& memory, uint64_t initrd_bytes, uint64_t highest) {
  const uint64_t end = too_small(memory) ? kLowReservedEnd : initrd_end(low_top(memory), highest);
  const uint64_t room = end - kLowReservedEnd;
  if (initrd_bytes > room)
    return std::unexpected(Error{"load initrd", "",
                                 "does not fit into memory: " + std::to_string(initrd_bytes) + " bytes, at most " +
                                     std::to_string(room),
                                 Status::kFailed});
  return Gpa{(end - initrd_bytes) & ~(kPageBytes - 1)};
}

std::string memory_advice(const BootImage& image, uint64_t kernel_end, uint64_t highest_initrd_byte) {
  constexpr unsigned kMebibyteBits = 20;
  for (uint64_t mebibytes = kMinBootMemoryBytes >> kMebibyteBits; mebibytes <= kHoleStart >> kMebibyteBits;
       ++mebibytes) {
    const uint64_t top = mebibytes << kMebibyteBits;
    uint64_t limit = image.device_tree.empty() ? top : reserve_below(top);
    if (!image.initrd.empty()) {
      const uint64_t end = initrd_end(top, highest_initrd_byte);
      limit = image.initrd.size() > end - kLowReservedEnd ? 0 : (end - image.initrd.size()) & ~(kPageBytes - 1);
    }
    if (kernel_end <= limit)
      return "; --memory " + std::to_string(mebibytes) + "M would do";
  }
  return "";
}

std::expected<void, Error> check_image(const GuestMemory& memory, const BootImage& image,
                                       uint64_t max_cmdline_bytes, uint64_t tree_room) {
  if (too_small(memory))
    return refuse_kernel("memory",
                         "too small: a kernel needs at least " + std::to_string(kMinBootMemoryBytes) + " bytes");
  if (image.cmdline.size() > max_cmdline_bytes)
    return refuse_kernel("command line",
                         "too long: " + std::to_string(image.cmdline.size()) + " bytes, at most " +
                             std::to_string(max_cmdline_bytes),
                         Status::kUsage);
  if (image.cmdline.find('\0') != std::string_view::npos)
    return refuse_kernel("command line", "holds a NUL", Status::kUsage);
  if (image.device_tree.size() > tree_room)
    return refuse_kernel("device tree", "too large: " + std::to_string(image.device_tree.size()) +
                                            " bytes, at most " + std::to_string(tree_room));
  return {};
}

std::expected<void, Error> write_boot_data(GuestMemory& memory, uint64_t gpa, std::span<const std::byte> bytes) {
  if (!memory.write(Gpa{gpa}, bytes))
    return refuse_kernel("gpa:" + to_hex(gpa), "boot data does not fit into memory");
  return {};
}

} // namespace stopvisor::vmm
