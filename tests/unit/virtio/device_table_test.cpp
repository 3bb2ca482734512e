// SPDX-License-Identifier: Apache-2.0
// What stands in a machine's description makes the same devices again.
#include "vmm/virtio/device_table.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace stopvisor::vmm::virtio {
namespace {

VmConfig everything() {
  VmConfig config;
  config.kernel = "vmlinuz";
  config.disks = {{"/images/a b.img", false}, {"/images/c.img", true}};
  config.nets = {{"tap0", {}}};
  return config;
}

TEST(DeviceTable, PutsDisksFirstThenNetworksThenEntropy) {
  const auto nodes = describe_devices(everything());
  ASSERT_EQ(nodes.size(), 4U);
  EXPECT_EQ(nodes[0].compatible, "stopvisor,block-v1");
  EXPECT_EQ(nodes[1].compatible, "stopvisor,block-v1");
  EXPECT_EQ(nodes[2].compatible, "stopvisor,net-v1");
  EXPECT_EQ(nodes[3].compatible, "stopvisor,entropy-v1");
  for (size_t slot = 0; slot < nodes.size(); ++slot) {
    EXPECT_EQ(nodes[slot].mmio.value, 0xd010'0000 + slot * 0x1000);
    EXPECT_EQ(nodes[slot].gsi, 12 + slot);
  }
}

TEST(DeviceTable, ReadsBackWhatItDescribes) {
  const VmConfig config = everything();
  VmConfig again;
  again.kernel = config.kernel;
  for (const auto& node : describe_devices(config))
    for (const Kind& kind : kinds())
      if (kind.compatible == node.compatible) {
        ASSERT_TRUE(kind.add(again, node.properties).has_value()) << node.compatible;
      }
  const auto first = describe_devices(config);
  const auto second = describe_devices(again);
  ASSERT_EQ(second.size(), first.size());
  for (size_t slot = 0; slot < first.size(); ++slot) {
    EXPECT_EQ(second[slot].compatible, first[slot].compatible);
    EXPECT_EQ(second[slot].properties, first[slot].properties);
  }
}

TEST(DeviceTable, RefusesADiskWithoutAPath) {
  VmConfig config;
  for (const Properties& wrong : {Properties{}, Properties{{"stopvisor,path", std::nullopt}},
                                  Properties{{"stopvisor,path", ""}}, Properties{{"stopvisor,read-only", "x"}}}) {
    const auto added = kinds().front().add(config, wrong);
    ASSERT_FALSE(added.has_value());
    EXPECT_EQ(added.error().status, Status::kUsage);
  }
  EXPECT_TRUE(config.disks.empty());
}

TEST(DeviceTable, HasNoMoreSlotsThanItHas) {
  VmConfig config;
  config.kernel = "vmlinuz";
  config.disks.assign(12, {"/images/a.img", true});
  const auto devices = make_devices(config);
  ASSERT_FALSE(devices.has_value());
  EXPECT_EQ(devices.error().status, Status::kUsage);
  EXPECT_NE(devices.error().reason.find("13 disks"), std::string::npos) << devices.error().reason;
}

TEST(DeviceTable, GivesTheProbeGuestNothing) {
  EXPECT_TRUE(places(VmConfig{}).empty());
}

} // namespace
} // namespace stopvisor::vmm::virtio
