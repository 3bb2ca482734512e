// SPDX-License-Identifier: Apache-2.0
// Sections are hostile input: each is known, there once, of a known version, and read to its end.
#include "vmm/state/sections.h"

#include <gtest/gtest.h>

namespace stopvisor::vmm {
namespace {

StateSection section(StateKind kind, uint32_t instance, std::vector<std::byte> payload = {}) {
  return {static_cast<uint32_t>(kind), 1, instance, std::move(payload)};
}

TEST(Sections, AreTakenByKindAndInstance) {
  const std::vector<StateSection> all{section(StateKind::kVcpuRegs, 1, {std::byte{5}}),
                                      section(StateKind::kVcpuRegs, 0, {std::byte{4}})};
  auto from = StateSections::index(all);
  ASSERT_TRUE(from.has_value());
  EXPECT_EQ(from->count(StateKind::kVcpuRegs), 2U);
  EXPECT_EQ(from->count(StateKind::kVcpuMsrs), 0U);
  for (const uint8_t instance : {uint8_t{1}, uint8_t{0}}) {
    uint8_t seen = 0;
    ASSERT_TRUE(from->take(StateKind::kVcpuRegs, 1, instance, [&](StateReader& in) { seen = in.get<uint8_t>(); })
                    .has_value());
    EXPECT_EQ(seen, 4 + instance);
  }
  EXPECT_TRUE(from->finish().has_value());
}

TEST(Sections, OfAnUnknownKindAreRefusedByNumber) {
  const std::vector<StateSection> all{{0x777, 1, 0, {}}};
  const auto from = StateSections::index(all);
  ASSERT_FALSE(from.has_value());
  EXPECT_EQ(from.error().message(), "restore: section of kind 0x777: this program does not know what it is");
}

TEST(Sections, ThatAreThereTwiceAreRefused) {
  const std::vector<StateSection> all{section(StateKind::kPit, 0), section(StateKind::kSerial, 0),
                                      section(StateKind::kPit, 0)};
  const auto from = StateSections::index(all);
  ASSERT_FALSE(from.has_value());
  EXPECT_EQ(from.error().message(), "restore: the PIT: it is there twice");
}

TEST(Sections, ThatNobodyTakesAreNamed) {
  const std::vector<StateSection> all{section(StateKind::kVirtioBackend, 3)};
  const auto from = StateSections::index(all);
  ASSERT_TRUE(from.has_value());
  EXPECT_EQ(from->finish().error().message(),
            "restore: virtio slot 3's device: this machine has nothing to take it");
}

TEST(Sections, OfTheWrongLengthAreRefused) {
  const std::vector<StateSection> all{section(StateKind::kSerial, 0, std::vector<std::byte>(3))};
  const auto reading = [&](auto read) {
    auto from = StateSections::index(all);
    return from->take(StateKind::kSerial, 1, 0, read).error().reason;
  };
  EXPECT_EQ(reading([](StateReader& in) { (void)in.get<uint32_t>(); }), "it is too short");
  EXPECT_EQ(reading([](StateReader& in) { (void)in.get<uint16_t>(); }), "it is too long");
}

TEST(StateReader, GivesZerosAndTheFirstReasonOnceItWasRefused) {
  const std::array<std::byte, 2> bytes{std::byte{2}, std::byte{9}};
  StateReader in(bytes);
  (void)in.get_flag();
  EXPECT_EQ(in.get<uint8_t>(), 0);
  in.refuse("something else");
  EXPECT_EQ(in.left(), 0U);
  EXPECT_STREQ(in.finish(), "a flag that is neither 0 nor 1");
}

TEST(StateWriter, WritesLittleEndianWithoutPadding) {
  StateWriter out;
  put_fields(out, uint8_t{1}, uint32_t{0x05040302}, true, std::array<uint16_t, 2>{0x0706, 0x0908});
  const std::vector<std::byte> expected{std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}, std::byte{5},
                                        std::byte{1}, std::byte{6}, std::byte{7}, std::byte{8}, std::byte{9}};
  EXPECT_EQ(out.take(), expected);
}

} // namespace
} // namespace stopvisor::vmm
