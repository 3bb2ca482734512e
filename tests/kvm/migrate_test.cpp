// SPDX-License-Identifier: Apache-2.0
// A guest that is moved to another machine while it works goes on there from the very byte at which it was held.
#include <array>

#include "tests/kvm/migrate_fixture.h"
#include "vmm/guest_memory.h"

namespace stopvisor::vmm::testing {
namespace {

using migrate::SourceOptions;

constexpr const char* kAllScenarios = "scenarios=gap,ledger,code,dirty,io,idle timer_hz=500 dirty_mib=8";

class Migrate : public MigrateTest {
protected:
  // Every migration of a long run has other ledger and code values, which are to arrive.
  static void write_ledger_and_code(Vm& vm, uint64_t value) {
    const auto stop = vm.stops().run([&](stopper::StopContext&) {
      for (uint32_t word = 0; word < probe::kLedgerWords; ++word) {
        poke(vm, probe::ledger_word_gpa(word), value);
        vm.written_pages().note(Gpa{probe::ledger_word_gpa(word)}, sizeof value);
      }
      std::array<uint8_t, 8> immediate{};
      immediate.fill(static_cast<uint8_t>(value));
      for (uint32_t site = 0; site < probe::kCodeSites; ++site) {
        const Gpa gpa{probe::code_site_gpa(site) + probe::kCodeImmediateOffset};
        EXPECT_TRUE(vm.memory().write(gpa, std::as_bytes(std::span(immediate))));
        vm.written_pages().note(gpa, immediate.size());
      }
      return 0;
    });
    EXPECT_TRUE(stop.has_value());
  }
  void rounds(uint32_t cpus, uint32_t count, const SourceOptions& options = {},
              const std::string& cmdline = kAllScenarios, uint64_t memory = 48ULL << 20) {
    VmConfig config = probe(cpus, cmdline);
    config.memory_bytes = memory;
    Guest guest = busy(config);
    ASSERT_NE(guest.vm, nullptr);
    for (uint32_t round = 1; round <= count; ++round) {
      write_ledger_and_code(*guest.vm, round);
      ASSERT_NO_FATAL_FAILURE(expect_to_move(guest, options)) << "migration " << round;
      ASSERT_EQ(peek<uint64_t>(*guest.vm, probe::ledger_word_gpa(7)), round);
    }
  }
};

TEST_F(Migrate, ABusyGuestBackAndForthWith1Vcpu) {
  rounds(1, migrations(2, 6, 100));
}
TEST_F(Migrate, ABusyGuestBackAndForthWith2Vcpus) {
  rounds(2, migrations(2, 8, 160));
}
TEST_F(Migrate, ABusyGuestBackAndForthWith4Vcpus) {
  rounds(4, migrations(1, 4, 80));
}
TEST_F(Migrate, ABusyGuestBackAndForthWith8Vcpus) {
  rounds(8, migrations(1, 3, 40));
}
TEST_F(Migrate, OverFourStreams) {
  rounds(2, migrations(1, 4, 60), over(4));
}
TEST_F(Migrate, Compressed) {
  rounds(2, migrations(1, 3, 40), over(1, true));
}
TEST_F(Migrate, CompressedOverFourStreams) {
  rounds(2, migrations(1, 3, 40), over(4, true));
}

// Pages on both sides of the hole, the host's writes as well: a guest is not quick to get there.
TEST_F(Migrate, MemoryOnBothSidesOfTheHole) {
  if (migrations(0, 0, 1) == 0)
    GTEST_SKIP() << "3 GiB twice: only with --long";
  VmConfig config = probe(2, "scenarios=ledger,io,idle");
  config.memory_bytes = kHoleStart + (208ULL << 20);
  Guest guest = busy(config);
  ASSERT_NE(guest.vm, nullptr);
  const std::array<uint64_t, 4> places{64ULL << 20, kHoleStart - kPageBytes, kHoleEnd,
                                       kHoleEnd + (208ULL << 20) - kPageBytes};
  for (const uint64_t gpa : places)
    poke(*guest.vm, gpa + 8, gpa);
  for (int round = 0; round < 2; ++round) {
    ASSERT_NO_FATAL_FAILURE(expect_to_move(guest, over(2)));
    for (const uint64_t gpa : places)
      EXPECT_EQ(peek<uint64_t>(*guest.vm, gpa + 8), gpa) << std::hex << gpa;
  }
}

TEST_F(Migrate, AGuestThatIsPausedStaysPaused) {
  Guest guest = busy(probe(2, ""));
  ASSERT_NE(guest.vm, nullptr);
  ASSERT_TRUE(guest.holds().pause({}, HoldClock::now() + std::chrono::seconds(20)).has_value());
  const Outcome outcome = move(guest);
  ASSERT_TRUE(outcome.source.has_value()) << outcome.source.error().message();
  ASSERT_TRUE(outcome.destination.has_value()) << outcome.destination.error().message();
  EXPECT_TRUE(arrived_held_);
  EXPECT_EQ(guest.vm->state(), VmState::kHeld);
  ASSERT_TRUE(guest.holds().resume().has_value());
  goes_on(*guest.vm);
}

TEST_F(Migrate, VectorRegistersGoAlong) {
  Guest guest = busy(probe(2, ""));
  ASSERT_NE(guest.vm, nullptr);
  ASSERT_TRUE(guest.vm->stops().acquire_hold().has_value());
  Sections sections = saved_twice(*guest.vm);
  EXPECT_GE(fill_vector_registers(sections, 0) + fill_vector_registers(sections, 1), 2U);
  const StateSection first = *find(sections, StateKind::kVcpuXsave, 0);
  const StateSection second = *find(sections, StateKind::kVcpuXsave, 1);
  guest = at_home(restored(*guest.vm, sections));
  ASSERT_NE(guest.vm, nullptr);
  ASSERT_TRUE(guest.vm->start().has_value());
  for (int round = 0; round < 2; ++round)
    ASSERT_NO_FATAL_FAILURE(expect_to_move(guest));
  Sections now = state_of(*guest.vm);
  ASSERT_FALSE(now.empty());
  EXPECT_EQ(*find(now, StateKind::kVcpuXsave, 0), first);
  EXPECT_EQ(*find(now, StateKind::kVcpuXsave, 1), second);
}

TEST_F(Migrate, AVcpuThatIsOfflineStaysSoAndComesBackThere) {
  const auto soon = [] { return std::chrono::steady_clock::now() + std::chrono::seconds(20); };
  Guest guest = busy(probe(3, ""));
  ASSERT_NE(guest.vm, nullptr);
  ASSERT_TRUE(guest.vm->offline_cpu(1, soon(), false).has_value());
  ASSERT_NO_FATAL_FAILURE(expect_to_move(guest));
  EXPECT_EQ(guest.vm->vcpu_status(1).presence, VcpuPresence::kOffline);
  const auto back = guest.vm->online_cpu(1, soon());
  ASSERT_TRUE(back.has_value()) << back.error().message();
  ASSERT_TRUE(await(*guest.vm, [&] { return cpus_running(*guest.vm) == 3; }));
  ASSERT_NO_FATAL_FAILURE(expect_to_move(guest));
}

// It writes faster than memory can be sent: only a guest that is slowed can be moved.
TEST_F(Migrate, AGuestThatRewritesNearlyAllOfItsMemoryIsSlowedAndMoved) {
  const uint64_t mib = migrations(96, 900, 900);
  VmConfig config = probe(2, "scenarios=dirty,ledger dirty_mib=" + std::to_string(mib));
  config.memory_bytes = (mib + 124) << 20;
  Guest guest = busy(config);
  ASSERT_NE(guest.vm, nullptr);
  ASSERT_TRUE(await(*guest.vm, [&] { // all of it once
    return (results(*guest.vm, 0).dirty_pages + results(*guest.vm, 1).dirty_pages) * kPageBytes > mib << 20;
  }));
  SourceOptions options;
  options.max_downtime = std::chrono::milliseconds(20);
  options.timeout = std::chrono::minutes(5);
  ASSERT_NO_FATAL_FAILURE(expect_to_move(guest, options));
  // Whether it has to be slowed is the host's business (a link faster than it writes): Convergence's tests know
  // when.
  std::printf("             it was slowed by %llu stops\n",
              static_cast<unsigned long long>(figures_.throttle_stops));
}

} // namespace
} // namespace stopvisor::vmm::testing
