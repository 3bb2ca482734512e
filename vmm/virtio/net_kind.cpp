// SPDX-License-Identifier: Apache-2.0
#include "vmm/virtio/net_kind.h"

#include <utility>

#include "vmm/tap.h"
#include "vmm/virtio/net.h"

namespace stopvisor::vmm::virtio {
namespace {

constexpr const char* kTap = "stopvisor,tap";
constexpr const char* kMac = "stopvisor,mac";

std::unexpected<Error> refuse(const char* property, std::string reason) {
  return std::unexpected(Error{"read network device", property, std::move(reason), Status::kUsage});
}

} // namespace

size_t count_nets(const VmConfig& config) {
  return config.nets.size();
}

std::expected<std::unique_ptr<Device>, Error> make_net(const VmConfig& config, size_t index) {
  const NetConfig& net = config.nets[index];
  auto tap = Tap::open(net.tap);
  if (!tap)
    return std::unexpected(tap.error());
  Net::Setting setting{"net" + std::to_string(index), mac_of(net, config.name, static_cast<uint32_t>(index)),
                       tap->mtu()};
  return std::make_unique<Net>(std::move(setting), std::make_unique<Tap>(*std::move(tap)));
}

Properties describe_net(const VmConfig& config, size_t index) {
  const NetConfig& net = config.nets[index];
  // The address also where nobody gave it: a machine made from this is the same under any name.
  return {{kTap, net.tap}, {kMac, mac_of(net, config.name, static_cast<uint32_t>(index)).text()}};
}

std::expected<void, Error> add_net(VmConfig& config, const Properties& properties) {
  NetConfig net;
  const Property* const tap = find(properties, kTap);
  if (tap == nullptr || !tap->text)
    return refuse(kTap, "is missing");
  net.tap = *tap->text;
  if (const Property* const mac = find(properties, kMac); mac != nullptr) {
    net.mac = parse_mac(mac->text.value_or(""));
    if (!net.mac)
      return refuse(kMac, "'" + mac->text.value_or("") + "' is no address: six bytes as in 02:00:00:00:00:01");
  }
  config.nets.push_back(std::move(net));
  return {};
}

} // namespace stopvisor::vmm::virtio
