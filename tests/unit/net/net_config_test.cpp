// SPDX-License-Identifier: Apache-2.0
// MAC addresses and what a user may say of network devices.
#include "vmm/net_config.h"

#include <array>

#include <gtest/gtest.h>

#include "vmm/virtio/net_kind.h"

namespace stopvisor::vmm {
namespace {

std::string refusal(const std::vector<NetConfig>& nets) {
  const auto fine = check_nets(nets, "vm1");
  if (fine)
    return "taken";
  EXPECT_EQ(fine.error().status, Status::kUsage);
  return fine.error().message();
}

TEST(MacAddress, ReadsWhatItWrites) {
  const auto mac = parse_mac("02:5A:00:00:ff:01");
  ASSERT_TRUE(mac);
  EXPECT_EQ(mac->text(), "02:5a:00:00:ff:01");
  EXPECT_EQ(parse_mac(mac->text()), mac);
}

TEST(MacAddress, IsNothingElse) {
  for (const char* text : {"", "02", "02:00:00:00:00", "02:00:00:00:00:01:02", "02:00:00:00:00:0",
                           "02-00-00-00-00-01", "0200:00:00:00:01:", "02:00:00:00:00:0g", "+2:00:00:00:00:01",
                           " 2:00:00:00:00:01", "02:00:00:00:00:01 ", "02:00:00:00:00::1"})
    EXPECT_FALSE(parse_mac(text)) << text;
}

TEST(MacAddress, IsAStationsUnlessItIsAGroupsOrNone) {
  EXPECT_TRUE(parse_mac("02:00:00:00:00:01")->is_station());
  EXPECT_FALSE(parse_mac("ff:ff:ff:ff:ff:ff")->is_station());
  EXPECT_FALSE(parse_mac("01:00:5e:00:00:01")->is_station());
  EXPECT_FALSE(parse_mac("00:00:00:00:00:00")->is_station());
}

TEST(MacAddress, OfAVmIsLocalAndTheSameEachTime) {
  const MacAddress mac = default_mac("vm1", 0);
  EXPECT_TRUE(mac.is_station());
  EXPECT_EQ(mac.bytes[0] & 3, 2);
  // Written down: a guest that has seen one must see it again after an update.
  EXPECT_EQ(mac.text(), "3a:44:01:c7:59:71");
  EXPECT_NE(default_mac("vm1", 1), mac);
  EXPECT_NE(default_mac("vm2", 0), mac);
}

TEST(NetConfig, TakesSeveralThatDiffer) {
  EXPECT_EQ(refusal({}), "taken");
  EXPECT_EQ(refusal({{"tap0", {}}, {"tap1", {}}, {"tap2", parse_mac("02:00:00:00:00:01")}}), "taken");
}

TEST(NetConfig, RefusesOneTapOrAddressTwice) {
  const auto mac = parse_mac("02:00:00:00:00:01");
  EXPECT_EQ(refusal({{"tap0", {}}, {"tap0", {}}}), "start VM: network: tap0: is given twice; a tap is one cable");
  EXPECT_EQ(refusal({{"tap0", mac}, {"tap1", mac}}),
            "start VM: network: tap1: 02:00:00:00:00:01 is also the address at tap0");
  EXPECT_EQ(refusal({{"tap0", default_mac("vm1", 1)}, {"tap1", {}}}).substr(0, 24), "start VM: network: tap1:");
}

TEST(NetConfig, RefusesNamesAndAddressesThatCannotBe) {
  EXPECT_EQ(refusal({{"a b", {}}}), "start VM: network: a b: cannot be the name of an interface");
  EXPECT_EQ(refusal({{"tap0", parse_mac("ff:ff:ff:ff:ff:ff")}}),
            "start VM: network: tap0: ff:ff:ff:ff:ff:ff is no address of one machine");
}

TEST(NetConfig, ComesBackFromTheMachineDescription) {
  VmConfig config;
  config.name = "vm1";
  config.nets = {{"tap0", {}}, {"tap1", parse_mac("02:00:00:00:00:01")}};
  VmConfig again;
  for (size_t index = 0; index < virtio::count_nets(config); ++index)
    ASSERT_TRUE(virtio::add_net(again, virtio::describe_net(config, index)));
  ASSERT_EQ(again.nets.size(), 2u);
  EXPECT_EQ(again.nets[0].tap, "tap0");
  EXPECT_EQ(again.nets[0].mac, default_mac("vm1", 0)); // also under another name
  EXPECT_EQ(again.nets[1].mac, config.nets[1].mac);
}

TEST(NetConfig, IsNotReadFromADescriptionThatLacksIt) {
  VmConfig config;
  EXPECT_EQ(virtio::add_net(config, {}).error().message(), "read network device: stopvisor,tap: is missing");
  EXPECT_EQ(virtio::add_net(config, {{"stopvisor,tap", {}}}).error().status, Status::kUsage);
  EXPECT_EQ(virtio::add_net(config, {{"stopvisor,tap", "tap0"}, {"stopvisor,mac", "2"}}).error().message(),
            "read network device: stopvisor,mac: '2' is no address: six bytes as in 02:00:00:00:00:01");
  EXPECT_TRUE(config.nets.empty());
}

} // namespace
} // namespace stopvisor::vmm
