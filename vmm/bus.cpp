// SPDX-License-Identifier: Apache-2.0
#include "vmm/bus.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <limits>
#include <string>

namespace stopvisor::vmm {
namespace {

Error cannot_attach(const BusDevice& device, uint64_t base, const std::string& reason) {
  char where[32];
  std::snprintf(where, sizeof where, " at 0x%" PRIx64, base);
  return Error{"attach device", std::string(device.name()) + where, reason, Status::kFailed};
}

} // namespace

std::expected<void, Error> Bus::attach(uint64_t base, uint64_t size, BusDevice& device) {
  if (size == 0 || size - 1 > std::numeric_limits<uint64_t>::max() - base)
    return std::unexpected(cannot_attach(device, base, "its range is empty or passes the end of the bus"));
  const auto after = std::upper_bound(ranges_.begin(), ranges_.end(), base,
                                      [](uint64_t address, const Range& range) { return address < range.base; });
  if (after != ranges_.begin() && base - std::prev(after)->base < std::prev(after)->size)
    return std::unexpected(
        cannot_attach(device, base, "overlaps " + std::string(std::prev(after)->device->name())));
  if (after != ranges_.end() && after->base - base < size)
    return std::unexpected(cannot_attach(device, base, "overlaps " + std::string(after->device->name())));
  ranges_.insert(after, {base, size, &device});
  return {};
}

const Bus::Range* Bus::find(uint64_t address, size_t length) const noexcept {
  const auto after = std::upper_bound(ranges_.begin(), ranges_.end(), address,
                                      [](uint64_t wanted, const Range& range) { return wanted < range.base; });
  if (after == ranges_.begin())
    return nullptr;
  const Range& range = *std::prev(after);
  const uint64_t offset = address - range.base;
  if (offset >= range.size || length > range.size - offset)
    return nullptr;
  return &range;
}

bool Bus::read(uint64_t address, std::span<std::byte> data) const noexcept {
  const Range* const range = find(address, data.size());
  if (range == nullptr) {
    std::fill(data.begin(), data.end(), std::byte{0xff});
    return false;
  }
  range->device->read(address - range->base, data);
  return true;
}

bool Bus::write(uint64_t address, std::span<const std::byte> data) const noexcept {
  const Range* const range = find(address, data.size());
  if (range == nullptr)
    return false;
  range->device->write(address - range->base, data);
  return true;
}

void Bus::reset_devices() const noexcept {
  const BusDevice* last = nullptr;
  for (const Range& range : ranges_) {
    if (range.device != last) // one device may have neighbouring ranges; a second reset() would do no harm
      range.device->reset();
    last = range.device;
  }
}

} // namespace stopvisor::vmm
