// SPDX-License-Identifier: Apache-2.0
// Windows, and vCPUs that are inside them or about to come back into them.
#include <gtest/gtest.h>

#include "tests/unit/patch/fake_guest.h"
#include "tools/patch/instructions.h"

namespace stopvisor::patch {
namespace {

using namespace testing;
using vmm::Status;

constexpr uint64_t kCode = 0x20'0000;
constexpr uint64_t kStack = 0x3e'3f00;

class VcpuChecksTest : public ::testing::Test {
protected:
  VcpuChecksTest() {
    options.deadline = clock.time + std::chrono::seconds(5);
    // push rbp; mov rbp,rsp; nop; nop; jmp -2 (to the second nop); rep movsb; ret
    guest.put_bytes(kCode, hex({0x55, 0x48, 0x89, 0xe5, 0x90, 0x90, 0xeb, 0xfd, 0xf3, 0xa4, 0xc3}));
  }
  // Three instructions: mov rbp,rsp; nop; nop -- or a part of them.
  Manifest patch(uint64_t at = kCode + 1, Bytes expect = hex({0x48, 0x89, 0xe5}),
                 Bytes bytes = hex({0x90, 0x90, 0x90})) {
    return manifest_of("p",
                       {write_of("gva:" + vmm::to_hex(at), SiteKind::kCode, std::move(expect), std::move(bytes))});
  }
  Manifest in_function(Manifest made) {
    made.writes[0].function = FunctionExtent{*parse_place("gva:" + vmm::to_hex(kCode)), 11};
    return made;
  }
  static std::string message(const Result& result) { return result ? "" : result.error().error.message(); }

  FakeGuest guest;
  FakeClock clock;
  FakeHooks hooks;
  Engine engine{guest, clock, &hooks};
  Options options;
};

TEST(Instructions, HaveTheirLengthsTargetsAndRepeats) {
  const Bytes code = hex({0x55, 0xeb, 0xfd, 0xf3, 0xa4, 0xe8, 0, 1, 0, 0});
  const auto list = decode(code, 0x1000, true);
  ASSERT_TRUE(list.has_value());
  ASSERT_EQ(list->size(), 4U);
  EXPECT_EQ((*list)[1].target, 0x1000U);
  EXPECT_TRUE((*list)[2].repeats);
  EXPECT_EQ((*list)[3].at, 0x1005U);
  EXPECT_EQ((*list)[3].target, 0x110aU);
  EXPECT_EQ(decode(hex({0x90, 0xe8, 0}), 0x1000, true).error(), 0x1001U); // cut short
  EXPECT_EQ(decode(hex({0x06}), 0x1000, true).error(), 0x1000U);          // push es: not in 64-bit mode
  EXPECT_TRUE(decode(hex({0x06}), 0x1000, false).has_value());
}

TEST_F(VcpuChecksTest, AVcpuInsideTheWindowIsRefusedAndOneAtItsBeginningIsNot) {
  for (uint64_t offset = 0; offset < 8; ++offset) {
    guest.vcpu(1).rip = kCode + offset;
    const auto checked = engine.check(patch(), options);
    const bool inside = offset == 2 || offset == 3;
    EXPECT_EQ(!checked.has_value(), inside) << offset << message(checked);
    if (!inside)
      continue;
    EXPECT_EQ(checked.error().error.status, Status::kBusy); // it passes by
    EXPECT_EQ(checked.error().reasons[0].check, Check::kRip);
    EXPECT_NE(
        message(checked).find("vCPU 1 is at gva:" + vmm::to_hex(kCode + offset) + ", inside its window of 3 bytes"),
        std::string::npos)
        << message(checked);
  }
}

TEST_F(VcpuChecksTest, AllVcpusInsideAreNamedAndARetrySucceeds) {
  guest.vcpu(0).rip = guest.vcpu(1).rip = kCode + 3;
  options.retries = 5;
  clock.on_wait = [&] { guest.vcpu(clock.waits == 1 ? 0 : 1).rip = kCode; };
  const auto applied = engine.apply(patch(), options);
  ASSERT_TRUE(applied.has_value()) << message(applied);
  EXPECT_EQ(clock.waits, 2);
  EXPECT_EQ(applied->cost.attempts, 3U);
  ASSERT_TRUE(engine.revert("p", options).has_value());
  guest.vcpu(0).rip = guest.vcpu(1).rip = kCode + 3;
  clock.on_wait = nullptr;
  const auto refused = engine.apply(patch(), options);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().reasons.size(), 2U);
  EXPECT_EQ(refused.error().cost.attempts, 6U);
  EXPECT_EQ(guest.bytes_at(kCode + 1, 3), hex({0x48, 0x89, 0xe5}));
}

TEST_F(VcpuChecksTest, AnAliasOfTheWindowCountsAsTheWindow) {
  guest.map(0x3f'1000, kCode | 7);
  guest.vcpu(0).rip = 0x3f'1002;
  const auto refused = engine.apply(patch(), options);
  EXPECT_NE(message(refused).find("vCPU 0 is at gva:0x3f1002, inside"), std::string::npos) << message(refused);
}

TEST_F(VcpuChecksTest, AVcpuThatHasNotStartedIsNowhere) {
  guest.vcpu(1).rip = kCode + 2;
  guest.vcpu(1).waiting = true;
  EXPECT_TRUE(engine.check(patch(), options).has_value());
}

TEST_F(VcpuChecksTest, ARepeatedInstructionIsInsideFromItsFirstByte) {
  const Manifest movs = patch(kCode + 8, hex({0xf3, 0xa4}), hex({0x90, 0x90}));
  guest.vcpu(0).rip = kCode + 8;
  const auto refused = engine.check(movs, options);
  EXPECT_NE(message(refused).find("inside its window of 2 bytes"), std::string::npos) << message(refused);
  guest.vcpu(0).rip = kCode + 10;
  EXPECT_TRUE(engine.check(movs, options).has_value());
}

TEST_F(VcpuChecksTest, AWindowIsWholeInstructionsWhereTheFunctionIsKnown) {
  // The last byte of mov: the window is all of it.
  const Manifest last = in_function(patch(kCode + 3, hex({0xe5}), hex({0xe4})));
  guest.vcpu(0).rip = kCode + 2;
  const auto refused = engine.check(last, options);
  EXPECT_NE(message(refused).find("inside its window of 3 bytes"), std::string::npos) << message(refused);
}

TEST_F(VcpuChecksTest, ABranchIntoTheMiddleRefuses) {
  const Manifest nops = patch(kCode + 4, hex({0x90, 0x90}), hex({0x66, 0x90}));
  EXPECT_TRUE(engine.check(nops, options).has_value()); // nobody knows the function
  const auto refused = engine.check(in_function(nops), options);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().error.status, Status::kRefused);
  EXPECT_NE(message(refused).find("the branch at 0x200006 leads to 0x200005, into the middle of what is changed"),
            std::string::npos)
      << message(refused);
  options.forced.add(Check::kBranch);
  EXPECT_TRUE(engine.check(in_function(nops), options).has_value());
}

TEST_F(VcpuChecksTest, CodeThatCannotBeDecodedIsRefusedAndForcedItStillHasAWindow) {
  guest.put_bytes(kCode + 1, hex({0x06, 0x06, 0x06}));
  const Manifest strange = patch(kCode + 1, hex({0x06, 0x06, 0x06}));
  const auto refused = engine.check(strange, options);
  EXPECT_NE(message(refused).find("cannot be decoded: no instruction at 0x200001"), std::string::npos)
      << message(refused);
  options.forced.add(Check::kBranch);
  EXPECT_TRUE(engine.check(strange, options).has_value());
  guest.vcpu(0).rip = kCode + 1; // who knows where its instructions begin
  const auto inside = engine.check(strange, options);
  ASSERT_FALSE(inside.has_value());
  EXPECT_EQ(inside.error().reasons[0].check, Check::kRip);
}

TEST_F(VcpuChecksTest, CodeThatChangesBetweenLookAndStopIsLookedAtAgain) {
  int looks = 0;
  hooks.act = [&](Step step) {
    if (step == Step::kPrepared && ++looks == 1)
      guest.put_bytes(kCode + 9, hex({0xa5})); // in the function, not in the window
  };
  const auto applied = engine.apply(in_function(patch()), options);
  ASSERT_TRUE(applied.has_value()) << message(applied);
  EXPECT_EQ(applied->cost.attempts, 2U);
  ASSERT_TRUE(engine.revert("p", options).has_value());
  hooks.act = [&](Step step) {
    if (step == Step::kPrepared)
      guest.put<uint8_t>(kCode + 9, ++looks % 2 == 0 ? 0xa4 : 0xa5);
  };
  EXPECT_EQ(engine.apply(in_function(patch()), options).error().error.status, Status::kBusy);
}

TEST_F(VcpuChecksTest, AWindowThatIsOtherCodeUnderTheStopIsLookedAtAgain) {
  guest.put_bytes(0x38'0000, guest.bytes_at(kCode, 11));
  guest.put_bytes(0x38'0003, hex({0xec})); // mov rsp,rbp there
  hooks.act = [&](Step step) {
    if (step == Step::kPrepared)
      guest.map(kCode, 0x38'0000 | 7);
  };
  const auto applied = engine.apply(patch(kCode + 1, hex({0x48}), hex({0x49})), options);
  ASSERT_TRUE(applied.has_value()) << message(applied);
  EXPECT_EQ(applied->cost.attempts, 2U);
  EXPECT_EQ(guest.bytes_at(0x38'0001, 1), hex({0x49}));
}

TEST_F(VcpuChecksTest, ABreakpointOfTheGuestsOwnPassesBy) {
  guest.put<uint8_t>(kCode + 1, 0xcc);
  auto refused = engine.apply(patch(), options);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().error.status, Status::kBusy) << message(refused);
  ASSERT_EQ(refused.error().reasons.size(), 1U);
  EXPECT_EQ(refused.error().reasons[0].check, Check::kBreakpoint);
  options.retries = 1;
  clock.on_wait = [&] { guest.put<uint8_t>(kCode + 1, 0x48); };
  ASSERT_TRUE(engine.apply(patch(), options).has_value());
  guest.put<uint8_t>(kCode + 1, 0xcc);
  clock.on_wait = nullptr;
  refused = engine.revert("p", options);
  EXPECT_EQ(refused.error().error.status, Status::kBusy) << message(refused);
  EXPECT_EQ(engine.verify("p", options).error().error.status, Status::kDrift); // an audit has no excuse
}

TEST_F(VcpuChecksTest, AnInterruptedFrameThatLeadsIntoTheWindowRefuses) {
  guest.vcpu(1).general[4] = kStack;
  const uint64_t frame[] = {kCode + 2, 0x10, 0x202, 0x3e'3fc0, 0x18};
  for (size_t i = 0; i < 5; ++i)
    guest.put<uint64_t>(kStack + 0x40 + i * 8, frame[i]);
  const auto refused = engine.apply(patch(), options);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().reasons[0].check, Check::kFrames);
  EXPECT_EQ(refused.error().error.status, Status::kBusy);
  EXPECT_NE(message(refused).find("vCPU 1 will return from an interrupt to gva:0x200002"), std::string::npos);
  guest.put<uint64_t>(kStack + 0x40, kCode + 1); // its beginning
  EXPECT_TRUE(engine.check(patch(), options).has_value());
}

TEST_F(VcpuChecksTest, AFrameOnTheInterruptedStackIsFoundToo) {
  // An interrupt's own stack, whose frame has the pointer of the stack it came from, on which an older frame is.
  guest.vcpu(0).general[4] = kStack;
  const uint64_t outer[] = {0x3f'0000, 0x10, 0x202, 0x3d'0000, 0x18};
  const uint64_t inner[] = {kCode + 3, 0x10, 0x202, 0x3d'0800, 0x18};
  for (size_t i = 0; i < 5; ++i) {
    guest.put<uint64_t>(kStack + i * 8, outer[i]);
    guest.put<uint64_t>(0x3d'0100 + i * 8, inner[i]);
  }
  const auto refused = engine.apply(patch(), options);
  EXPECT_NE(message(refused).find("vCPU 0 will return from an interrupt to gva:0x200003"), std::string::npos)
      << message(refused);
}

TEST_F(VcpuChecksTest, AReturnAddressOnAStackIsLookedForWhereThatIsAsked) {
  guest.vcpu(0).general[4] = kStack;
  guest.put<uint64_t>(kStack + 0x80, kCode + 8); // in the function, behind the window
  EXPECT_TRUE(engine.check(in_function(patch()), options).has_value());
  options.stacks = true;
  const auto refused = engine.check(in_function(patch()), options);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().reasons[0].check, Check::kStacks);
  EXPECT_NE(message(refused).find("the stack of vCPU 0 has gva:0x200008 on it"), std::string::npos)
      << message(refused);
  guest.put<uint64_t>(kStack + 0x80, kCode + 11);
  EXPECT_TRUE(engine.check(in_function(patch()), options).has_value());
}

TEST_F(VcpuChecksTest, StacksThatAreNotMemoryDoNoHarm) {
  options.stacks = true;
  for (const uint64_t pointer : {uint64_t{0}, uint64_t{0x3f'fff9}, uint64_t{0x3f'ffff}, UINT64_MAX,
                                 uint64_t{1} << 47, uint64_t{0x50'0000}}) {
    guest.vcpu(0).general[4] = pointer;
    EXPECT_TRUE(engine.check(patch(), options).has_value()) << pointer;
  }
}

TEST_F(VcpuChecksTest, ManyForcedReasonsDoNotHideOneThatIsNot) {
  FakeGuest crowd(80);
  crowd.put_bytes(kCode, guest.bytes_at(kCode, 11));
  for (uint32_t cpu = 0; cpu < 80; ++cpu) {
    crowd.vcpu(cpu).rip = kCode + 2;
    crowd.vcpu(cpu).general[4] = 0; // no stack
  }
  crowd.vcpu(79).general[4] = kStack;
  const uint64_t frame[] = {kCode + 2, 0x10, 0x202, 0x3e'3fc0, 0x18};
  for (size_t i = 0; i < 5; ++i)
    crowd.put<uint64_t>(kStack + i * 8, frame[i]);
  Engine other(crowd, clock);
  options.forced.add(Check::kRip);
  const auto refused = other.apply(patch(), options);
  ASSERT_FALSE(refused.has_value());
  ASSERT_EQ(refused.error().reasons.size(), 1U);
  EXPECT_EQ(refused.error().reasons[0].check, Check::kFrames);
}

} // namespace
} // namespace stopvisor::patch
