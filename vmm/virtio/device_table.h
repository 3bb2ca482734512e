// SPDX-License-Identifier: Apache-2.0
// The virtio devices there are, one line each: what of a configuration asks for one, how it is made, and how it
// stands in the machine description. To add a device, add a line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "vmm/error.h"
#include "vmm/machine_description.h"
#include "vmm/virtio/device.h"
#include "vmm/vm.h"

namespace stopvisor::vmm::virtio {

using Property = machine::Property;
using Properties = std::vector<Property>;

struct Kind {
  std::string_view compatible; // of its node, before "virtio,mmio"
  // How many of them a machine of this configuration has.
  size_t (*count)(const VmConfig& config);
  // Makes the `index`th of them: opens what it needs of the host. CONTEXT: before a vCPU runs.
  std::expected<std::unique_ptr<Device>, Error> (*make)(const VmConfig& config, size_t index);
  // All that is needed to make it again.
  Properties (*describe)(const VmConfig& config, size_t index);
  // The reverse: adds to `config` what such a node asks for. RETURNS: kUsage where a property is missing or wrong.
  std::expected<void, Error> (*add)(VmConfig& config, const Properties& properties);
};

// In the order of their slots. The order of one machine's devices is the order in which its guest finds them.
[[nodiscard]] std::span<const Kind> kinds() noexcept;

// Slot i has registers at kSlotsGpa + i * kSlotBytes and the interrupt line kFirstSlotGsi + i.
inline constexpr uint64_t kSlotsGpa = 0xd010'0000;
inline constexpr uint64_t kSlotBytes = 0x1000;
inline constexpr uint32_t kFirstSlotGsi = 12;
inline constexpr size_t kSlots = 12;
[[nodiscard]] constexpr Gpa slot_gpa(size_t slot) noexcept {
  return Gpa{kSlotsGpa + slot * kSlotBytes};
}
[[nodiscard]] constexpr uint32_t slot_gsi(size_t slot) noexcept {
  return kFirstSlotGsi + static_cast<uint32_t>(slot);
}

// What is in one slot.
struct Place {
  const Kind* kind = nullptr;
  size_t index = 0; // among its kind
};
// What a machine of this configuration has in its slots, from slot 0 on. CONTEXT: any thread.
[[nodiscard]] std::vector<Place> places(const VmConfig& config);

// The nodes of all of them. CONTEXT: any thread.
[[nodiscard]] std::vector<machine::Virtio> describe_devices(const VmConfig& config);

// Makes all of them. RETURNS: as Kind::make(); kUsage where there are more than slots.
[[nodiscard]] std::expected<std::vector<std::unique_ptr<Device>>, Error> make_devices(const VmConfig& config);

// The property of that name, null where there is none.
[[nodiscard]] const Property* find(const Properties& properties, std::string_view name) noexcept;

} // namespace stopvisor::vmm::virtio
