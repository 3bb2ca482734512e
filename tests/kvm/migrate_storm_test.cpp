// SPDX-License-Identifier: Apache-2.0
// Whatever happens while a guest is moved: it runs on one side, and nothing of it is lost or done twice.
#include <array>

#include "tests/kvm/migrate_fixture.h"

namespace stopvisor::vmm::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

stopper::TimePoint in(milliseconds time) {
  return stopper::Clock::now() + time;
}

using MigrateStorm = MigrateTest;

// Clients that pause and resume, others that want stops, all the time.
TEST_F(MigrateStorm, OfStopsAndPauses) {
  Guest guest = small(2);
  ASSERT_NE(guest.vm, nullptr);
  for (uint32_t round = migrations(1, 4, 40); round != 0; --round) {
    const Vm* const before = guest.vm.get();
    Vm& vm = *guest.vm;
    Holds& holds = guest.holds();
    const Outcome outcome = move(guest, over(2), [&](Journey& journey) {
      std::vector<std::jthread> clients;
      for (int client = 0; client < 3; ++client)
        clients.emplace_back([&] {
          while (!is_over(journey))
            if (const auto pause = holds.pause({}, in(milliseconds(200))))
              holds.take_back(*pause);
        });
      clients.emplace_back([&] {
        while (!is_over(journey))
          (void)vm.stops().run([](stopper::StopContext&) { return 0; }, {.deadline = in(milliseconds(50))});
      });
    });
    ASSERT_TRUE(outcome.source.has_value()) << outcome.source.error().message();
    ASSERT_NO_FATAL_FAILURE(expect_one_side(outcome, guest, before));
  }
}

// Each is done wholly before the switch, or refused: the last that was done is what the destination has.
TEST_F(MigrateStorm, OfPokesAndPatches) {
  Guest guest = small(2);
  ASSERT_NE(guest.vm, nullptr);
  uint64_t done = 0;
  for (uint32_t round = migrations(1, 4, 40); round != 0; --round) {
    const Vm* const before = guest.vm.get();
    Vm& vm = *guest.vm;
    const uint64_t first = done;
    const auto update = [&](uint64_t value) {
      const auto note = [&](uint64_t gpa, const auto& bytes) {
        poke(vm, gpa, bytes);
        vm.written_pages().note(Gpa{gpa}, sizeof bytes);
      };
      for (uint32_t word = 0; word < probe::kLedgerWords; ++word)
        note(probe::ledger_word_gpa(word), value);
      std::array<uint8_t, 8> immediate{};
      immediate.fill(static_cast<uint8_t>(value));
      for (uint32_t site = 0; site < probe::kCodeSites; ++site)
        note(probe::code_site_gpa(site) + probe::kCodeImmediateOffset, immediate);
    };
    const Outcome outcome = move(guest, over(1), [&](Journey& journey) {
      while (!is_over(journey)) {
        const auto stop = vm.stops().run(
            [&](stopper::StopContext&) {
              update(done + 1);
              return 0;
            },
            {.deadline = in(milliseconds(50))});
        done += stop ? 1 : 0;
      }
    });
    ASSERT_TRUE(outcome.source.has_value()) << outcome.source.error().message();
    ASSERT_NO_FATAL_FAILURE(expect_one_side(outcome, guest, before));
    EXPECT_GT(done, first);
    for (uint32_t word = 0; word < probe::kLedgerWords; ++word)
      ASSERT_EQ(peek<uint64_t>(*guest.vm, probe::ledger_word_gpa(word)), done);
    for (uint32_t site = 0; site < probe::kCodeSites; ++site)
      ASSERT_EQ(peek<uint8_t>(*guest.vm, probe::code_site_gpa(site) + probe::kCodeImmediateOffset),
                static_cast<uint8_t>(done));
  }
}

// It comes through, with all that the reset has changed, or the guest goes on here.
TEST_F(MigrateStorm, WithAGuestThatResetsItself) {
  Guest guest = small(2);
  ASSERT_NE(guest.vm, nullptr);
  for (uint32_t round = migrations(2, 5, 40); round != 0; --round) {
    const Vm* const before = guest.vm.get();
    Vm& vm = *guest.vm;
    const Outcome outcome = move(guest, over(2), [&](Journey& journey) {
      await_some_moment(journey);
      // Code site 1 becomes: mov $0xfe, %al; out %al, $0x64; ret.
      const std::array<uint8_t, 5> pulse{0xb0, 0xfe, 0xe6, 0x64, 0xc3};
      (void)vm.stops().run(
          [&](stopper::StopContext&) {
            poke(vm, probe::code_site_gpa(1), pulse);
            vm.written_pages().note(Gpa{probe::code_site_gpa(1)}, pulse.size());
            return 0;
          },
          {.deadline = in(milliseconds(50))});
    });
    if (!outcome.source) {
      EXPECT_NE(outcome.source.error().reason, "");
    }
    ASSERT_TRUE(await(*guest.vm, [&] { return cpus_running(*guest.vm) == 2; }));
    ASSERT_NO_FATAL_FAILURE(expect_one_side(outcome, guest, before));
  }
}

// One is taken away and one added: where the destination's machine is not of that kind any more, it says so.
TEST_F(MigrateStorm, WithVcpusThatComeAndGo) {
  Guest guest = small(2);
  ASSERT_NE(guest.vm, nullptr);
  for (uint32_t round = migrations(2, 5, 40); round != 0; --round) {
    const Vm* const before = guest.vm.get();
    Vm& vm = *guest.vm;
    const bool adds = round % 2 == 0 && vm.cpu_count() < 6;
    const Outcome outcome = move(guest, over(2), [&](Journey& journey) {
      await_some_moment(journey);
      if (adds)
        (void)vm.add_cpu(in(seconds(5)));
      else if (vm.vcpu_status(1).presence == VcpuPresence::kOnline)
        (void)vm.offline_cpu(1, in(seconds(5)), false);
      else
        (void)vm.online_cpu(1, in(seconds(5)));
    });
    if (!outcome.source) {
      EXPECT_NE(outcome.source.error().reason.find("vCPUs"), std::string::npos) << outcome.source.error().message();
    }
    ASSERT_NO_FATAL_FAILURE(expect_one_side(outcome, guest, before));
  }
}

} // namespace
} // namespace stopvisor::vmm::testing
