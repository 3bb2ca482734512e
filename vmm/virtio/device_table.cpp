// SPDX-License-Identifier: Apache-2.0
#include "vmm/virtio/device_table.h"

#include <algorithm>
#include <array>
#include <utility>

#include "vmm/virtio/block.h"
#include "vmm/virtio/entropy.h"
#include "vmm/virtio/net_kind.h"

namespace stopvisor::vmm::virtio {
namespace {

constexpr std::array kKinds{
    Kind{"stopvisor,block-v1", count_blocks, make_block, describe_block, add_block},
    Kind{"stopvisor,net-v1", count_nets, make_net, describe_net, add_net},
    Kind{"stopvisor,entropy-v1", count_entropy, make_entropy, describe_entropy, add_entropy},
};

} // namespace

std::span<const Kind> kinds() noexcept {
  return kKinds;
}

std::vector<Place> places(const VmConfig& config) {
  std::vector<Place> taken;
  for (const Kind& kind : kKinds)
    for (size_t index = 0, count = kind.count(config); index < count; ++index)
      taken.push_back({&kind, index});
  return taken;
}

std::expected<std::vector<std::unique_ptr<Device>>, Error> make_devices(const VmConfig& config) {
  const auto wanted = places(config);
  if (wanted.size() > kSlots)
    return std::unexpected(Error{"start VM", config.name,
                                 std::to_string(wanted.size()) +
                                     " disks, networks and other devices are more than " +
                                     "the machine has slots for (" + std::to_string(kSlots) + ")",
                                 Status::kUsage});
  std::vector<std::unique_ptr<Device>> devices;
  for (const Place& place : wanted) {
    auto device = place.kind->make(config, place.index);
    if (!device)
      return std::unexpected(device.error());
    devices.push_back(std::move(*device));
  }
  return devices;
}

std::vector<machine::Virtio> describe_devices(const VmConfig& config) {
  std::vector<machine::Virtio> nodes;
  for (const Place& place : places(config))
    nodes.push_back({std::string(place.kind->compatible), slot_gpa(nodes.size()), kSlotBytes,
                     slot_gsi(nodes.size()), place.kind->describe(config, place.index)});
  return nodes;
}

const Property* find(const Properties& properties, std::string_view name) noexcept {
  const auto found = std::ranges::find(properties, name, &Property::name);
  return found != properties.end() ? &*found : nullptr;
}

} // namespace stopvisor::vmm::virtio
