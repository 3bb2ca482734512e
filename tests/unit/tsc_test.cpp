// SPDX-License-Identifier: Apache-2.0
// Aligning a late vCPU's TSC, on clocks that behave as KVM's do.
#include "vmm/tsc.h"

#include <gtest/gtest.h>

namespace stopvisor::vmm {
namespace {

// Time goes on by one with each look at it.
uint64_t g_host_tsc = 1'000'000; // NOLINT(cppcoreguidelines-avoid-non-const-global-variables): the one host's

class FakeTsc final : public TscAccess {
public:
  std::optional<uint64_t> offset() const override {
    return tells_offset ? std::optional(its_offset) : std::nullopt;
  }
  bool set_offset(uint64_t offset) override {
    if (takes_offset)
      its_offset = offset;
    return takes_offset;
  }
  std::expected<uint64_t, Error> msr(uint32_t index) const override {
    if (broken)
      return std::unexpected(Error{"vCPU clock", "KVM_GET_MSRS", "broken"});
    return index == kMsrTsc ? ++g_host_tsc + its_offset : adjust;
  }
  std::expected<void, Error> set_msr(uint32_t index, uint64_t value) override {
    if (broken)
      return std::unexpected(Error{"vCPU clock", "KVM_SET_MSRS", "broken"});
    if (index == kMsrTsc) {
      its_offset = value - ++g_host_tsc;
    } else {
      its_offset += value - adjust; // as a guest's own write, and that of some KVMs' hosts
      adjust = value;
    }
    return {};
  }

  bool tells_offset = true;
  bool takes_offset = true;
  bool broken = false;
  uint64_t its_offset = 0;
  uint64_t adjust = 0;
};

TEST(AlignTsc, GivesTheNewcomerTheSameOffsetAndAdjustment) {
  FakeTsc reference;
  reference.its_offset = 0 - 500'000ULL;
  reference.adjust = 77;
  FakeTsc newcomer;
  newcomer.its_offset = 0 - g_host_tsc; // its TSC begins with 0
  ASSERT_TRUE(align_tsc(reference, newcomer));
  EXPECT_EQ(newcomer.its_offset, reference.its_offset);
  EXPECT_EQ(newcomer.adjust, 77U);
}

TEST(AlignTsc, CopiesTheTscWhereOffsetsAreNotTold) {
  for (const bool tells : {false, true}) {
    FakeTsc reference;
    reference.its_offset = 0 - 500'000ULL;
    reference.tells_offset = tells;
    FakeTsc newcomer;
    newcomer.its_offset = 0 - g_host_tsc;
    newcomer.takes_offset = false;
    ASSERT_TRUE(align_tsc(reference, newcomer));
    EXPECT_LE(reference.its_offset - newcomer.its_offset, 2U); // the time it took
  }
}

TEST(AlignTsc, SaysWhereAClockCannotBeReadOrSet) {
  FakeTsc reference;
  FakeTsc newcomer;
  newcomer.takes_offset = false;
  newcomer.broken = true;
  EXPECT_FALSE(align_tsc(reference, newcomer));
  newcomer.broken = false;
  reference.broken = true;
  EXPECT_FALSE(align_tsc(reference, newcomer));
}

} // namespace
} // namespace stopvisor::vmm
