// SPDX-License-Identifier: Apache-2.0
// The VMM is killed in the middle of a change: what its guest's memory then holds, for whoever still has it mapped.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "tests/unit/patch/fake_guest.h"

namespace stopvisor::patch {
namespace {

using namespace testing;

constexpr size_t kSites = 8;
constexpr uint64_t kData = 0x30'0000;

// The change is made by a child, with which we share the guest's memory.
class KilledTest : public ::testing::Test {
protected:
  KilledTest() {
    patch.name = "p";
    patch.version = "1";
    for (size_t i = 0; i < kSites; ++i)
      patch.writes.push_back(
          write_of("gva:" + vmm::to_hex(kData + i * 0x1000), SiteKind::kData, hex({0}), hex({1})));
  }

  // RETURNS: whether the child was killed, as it should be.
  [[nodiscard]] bool apply_in_child() {
    const pid_t child = ::fork();
    if (child == 0) {
      Options options;
      options.deadline = clock.time + std::chrono::seconds(5);
      ::_exit(engine.apply(patch, options).has_value() ? 0 : 1);
    }
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
  }
  static void die() { (void)::raise(SIGKILL); }
  [[nodiscard]] size_t sites_changed() const {
    size_t changed = 0;
    for (size_t i = 0; i < kSites; ++i)
      changed += guest.bytes_at(kData + i * 0x1000, 1) == hex({1}) ? 1 : 0;
    return changed;
  }

  FakeGuest guest{2, vmm::MemoryBacking::kMemfd};
  FakeClock clock;
  FakeHooks hooks;
  Engine engine{guest, clock, &hooks};
  Manifest patch;
};

TEST_F(KilledTest, BeforeTheFirstWriteLeavesTheOldBytes) {
  const Bytes original = guest.everything();
  for (const Step step : {Step::kPrepared, Step::kHeld, Step::kChecked}) {
    hooks.act = [&](Step at) {
      if (at == step)
        die();
    };
    ASSERT_TRUE(apply_in_child());
    EXPECT_EQ(guest.everything(), original);
  }
}

TEST_F(KilledTest, AfterTheLastWriteLeavesTheNewBytes) {
  for (const Step step : {Step::kWritten, Step::kReadBack}) {
    for (size_t i = 0; i < kSites; ++i)
      guest.put<uint8_t>(kData + i * 0x1000, 0);
    hooks.act = [&](Step at) {
      if (at == step)
        die();
    };
    ASSERT_TRUE(apply_in_child());
    EXPECT_EQ(sites_changed(), kSites);
  }
}

// The one mixture there can be: of a guest that no vCPU runs any more, as it was killed with its VMM under the
// stop.
TEST_F(KilledTest, BetweenTwoWritesLeavesAMixtureThatNoGuestSees) {
  guest.before_write = [&] {
    if (guest.writes == kSites / 2 + 1)
      die();
  };
  ASSERT_TRUE(apply_in_child());
  EXPECT_EQ(sites_changed(), kSites / 2);
}

} // namespace
} // namespace stopvisor::patch
