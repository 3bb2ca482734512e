// SPDX-License-Identifier: Apache-2.0
#include "vmm/net_config.h"

#include <utility>

#include "vmm/tap.h"

namespace stopvisor::vmm {
namespace {

std::unexpected<Error> refuse(const NetConfig& net, std::string reason) {
  return std::unexpected(Error{"start VM: network", net.tap, std::move(reason), Status::kUsage});
}

} // namespace

MacAddress mac_of(const NetConfig& net, const std::string& vm_name, uint32_t index) {
  return net.mac ? *net.mac : default_mac(vm_name, index);
}

std::expected<void, Error> check_nets(std::span<const NetConfig> nets, const std::string& vm_name) {
  for (size_t index = 0; index < nets.size(); ++index) {
    const NetConfig& net = nets[index];
    if (auto fine = check_interface_name(net.tap); !fine)
      return refuse(net, fine.error().reason);
    const MacAddress mac = mac_of(net, vm_name, uint32_t(index));
    if (!mac.is_station())
      return refuse(net, mac.text() + " is no address of one machine");
    for (size_t other = 0; other < index; ++other) {
      if (nets[other].tap == net.tap)
        return refuse(net, "is given twice; a tap is one cable");
      if (mac_of(nets[other], vm_name, uint32_t(other)) == mac)
        return refuse(net, mac.text() + " is also the address at " + nets[other].tap);
    }
  }
  return {};
}

} // namespace stopvisor::vmm
