// SPDX-License-Identifier: Apache-2.0
// The wall clock of kvmclock, in a guest that is restored much later.
#include <array>
#include <chrono>
#include <cstdlib>

#include "tests/kvm/raw_guest.h"
#include "tests/kvm/state_fixture.h"

namespace stopvisor::vmm::testing {
namespace {

constexpr uint32_t kPlace = 0x5000;
constexpr uint32_t kWallClockMsr = 0x4b56'4d00; // MSR_KVM_WALL_CLOCK_NEW
constexpr uint64_t kHours = 10;

// pvclock_wall_clock
using Page = std::array<uint32_t, 3>; // version, seconds, nanoseconds

class RestoredWallClock : public StateTest {
protected:
  // A guest that asked for the time, saved; as if it had run for some hours.
  void SetUp() override {
    StateTest::SetUp();
    if (IsSkipped())
      return;
    const RawKernel kernel(Code()
                               .bytes({0xb9})
                               .u32(kWallClockMsr)
                               .bytes({0xb8})
                               .u32(kPlace)
                               .bytes({0x31, 0xd2, 0x0f, 0x30}) // xor %edx, %edx; wrmsr
                               .spin());
    VmConfig config;
    config.kernel = kernel.path();
    vm_ = make(config);
    ASSERT_NE(vm_, nullptr);
    ASSERT_TRUE(vm_->start().has_value());
    ASSERT_TRUE(await(*vm_, [&] { return page(*vm_)[1] != 0; }));
    ASSERT_TRUE(vm_->stops().acquire_hold().has_value());
    sections_ = saved_twice(*vm_);
    StateSection* const clock = find(sections_, StateKind::kClock, 0);
    ASSERT_NE(clock, nullptr);
    uint64_t kvmclock_ns = 0;
    std::memcpy(&kvmclock_ns, clock->payload.data(), sizeof(kvmclock_ns));
    kvmclock_ns += kHours * 3'600 * 1'000'000'000;
    std::memcpy(clock->payload.data(), &kvmclock_ns, sizeof(kvmclock_ns));
  }
  static Page page(const Vm& vm) { return peek<Page>(vm, kPlace); }
  [[nodiscard]] std::unique_ptr<Vm> restored_with(WallClock choice) const {
    auto twin = bare_twin(*vm_);
    if (twin == nullptr)
      return nullptr;
    copy_memory(*vm_, *twin);
    const auto done = twin->restore_state(sections_, {.wall_clock = choice});
    EXPECT_TRUE(done.has_value()) << done.error().message();
    return twin;
  }

  std::unique_ptr<Vm> vm_;
  Sections sections_;
};

TEST_F(RestoredWallClock, GoesOnFromTheSavedMoment) {
  const auto twin = restored_with(WallClock::kResume);
  ASSERT_NE(twin, nullptr);
  EXPECT_EQ(page(*twin), page(*vm_));
}

TEST_F(RestoredWallClock, IsTheHostsWhereThatIsAskedFor) {
  const auto twin = restored_with(WallClock::kHost);
  ASSERT_NE(twin, nullptr);
  const int64_t began = page(*twin)[1];
  const int64_t before =
      page(*vm_)[1]; // when the guest's clock began, to the host: just now, for a guest of some hours
  EXPECT_LE(std::abs(before - began - static_cast<int64_t>(kHours * 3'600)), 1'800);
  EXPECT_EQ(page(*twin)[0] % 2, 0U); // not being written
}

} // namespace
} // namespace stopvisor::vmm::testing
