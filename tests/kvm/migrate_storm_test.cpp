// SPDX-License-Identifier: Apache-2.0
// Whatever happens while a guest is moved: it runs on one side, and nothing of it is lost or done twice.
#include <array>
#include <random>

#include "tests/kvm/migrate_fixture.h"

namespace stopvisor::vmm::testing {
namespace {

using migrate::SourcePhase;
using std::chrono::milliseconds;
using std::chrono::seconds;

stopper::TimePoint in(milliseconds time) {
  return stopper::Clock::now() + time;
}

class MigrateStorm : public MigrateTest {
protected:
  static Guest small(uint32_t cpus) {
    VmConfig config = probe(cpus, "scenarios=ledger,code,dirty,io dirty_mib=8");
    config.memory_bytes = 40ULL << 20;
    return busy(config);
  }
  static bool is_over(const Journey& journey) {
    const SourcePhase phase = journey.source->view().phase;
    return phase == SourcePhase::kGone || phase == SourcePhase::kHere;
  }
  // Some moment of the migration: its begin, before all was copied once, or in its switch.
  void await_some_moment(Journey& journey) {
    if (random_() % 8 == 0)
      return;
    const uint64_t share = random_() % 130; // of the memory, in hundredths
    const uint64_t turns = random_() % 4 == 0 ? random_() % 100 : 0;
    const auto copied = [&] {
      const uint64_t total = journey.progress.total_bytes.load();
      return total != 0 && journey.progress.done_bytes.load() * 100 >= total * share;
    };
    const auto switches = [&] { return journey.source->view().phase == SourcePhase::kSwitching; };
    while (!is_over(journey) && !(share < 100 ? copied() : switches()))
      std::this_thread::yield();
    for (uint64_t turn = 0; turn < turns && !is_over(journey); ++turn)
      std::this_thread::yield();
  }
  // The guest runs on one side, the one that says so, and goes on there.
  void expect_one_side(const Outcome& outcome, Guest& guest, const Vm* before) {
    ASSERT_EQ(outcome.source.has_value(), outcome.destination.has_value())
        << (outcome.source ? outcome.destination.error().message() : outcome.source.error().message());
    ASSERT_EQ(outcome.source.has_value(), guest.vm.get() != before);
    if (arrived_held_ && outcome.source) {
      ASSERT_TRUE(guest.holds().resume().has_value());
    }
    ASSERT_NO_FATAL_FAILURE(goes_on(*guest.vm));
    moved_ += outcome.source.has_value() ? 1U : 0U;
  }

  std::mt19937 random_{20261130}; // NOLINT(bugprone-random-generator-seed): the same in each run
  uint32_t moved_ = 0;
};

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

TEST_F(MigrateStorm, OfCancels) {
  Guest guest = small(2);
  ASSERT_NE(guest.vm, nullptr);
  const uint32_t count = migrations(6, 20, 200);
  for (uint32_t round = 0; round < count; ++round) {
    const Vm* const before = guest.vm.get();
    const Outcome outcome = move(guest, over(round % 2 == 0 ? 1 : 4), [&](Journey& journey) {
      await_some_moment(journey);
      journey.stop.request_stop();
    });
    if (!outcome.source) {
      EXPECT_EQ(outcome.source.error().reason, "was cancelled");
    }
    ASSERT_NO_FATAL_FAILURE(expect_one_side(outcome, guest, before));
  }
  std::printf("             %u of %u were moved before they could be cancelled\n", moved_, count);
}

TEST_F(MigrateStorm, OfDestinationsThatAreCalledOff) {
  Guest guest = small(2);
  ASSERT_NE(guest.vm, nullptr);
  const uint32_t count = migrations(4, 12, 100);
  for (uint32_t round = 0; round < count; ++round) {
    const Vm* const before = guest.vm.get();
    const Outcome outcome = move(guest, over(round % 2 == 0 ? 1 : 4), [&](Journey& journey) {
      await_some_moment(journey);
      journey.arrival->cancel();
    });
    if (!outcome.source) { // and not that it said nothing for a while
      EXPECT_TRUE(outcome.source.error().reason.starts_with("hung up") ||
                  outcome.source.error().reason.starts_with("refuses: ") ||
                  outcome.source.error().reason.starts_with("gave up"))
          << outcome.source.error().message();
    }
    ASSERT_NO_FATAL_FAILURE(expect_one_side(outcome, guest, before));
  }
  std::printf("             %u of %u were moved before\n", moved_, count);
}

// What is asked for before the destination has said that it is ready is heard before the guest is given away.
TEST_F(MigrateStorm, HearsOfACancelBeforeItCommits) {
  Guest guest = small(2);
  ASSERT_NE(guest.vm, nullptr);
  const Vm* const before = guest.vm.get();
  at_state_ = [](Journey& journey) { journey.stop.request_stop(); };
  const Outcome outcome = move(guest);
  ASSERT_FALSE(outcome.source.has_value());
  EXPECT_EQ(outcome.source.error().reason, "was cancelled");
  ASSERT_NO_FATAL_FAILURE(expect_one_side(outcome, guest, before));
}
TEST_F(MigrateStorm, HearsOfAnEndBeforeItCommits) {
  Guest guest = small(2);
  ASSERT_NE(guest.vm, nullptr);
  at_state_ = [&](Journey&) { guest.vm->request_end({EndKind::kRequested, ""}); };
  const Outcome outcome = move(guest);
  ASSERT_FALSE(outcome.source.has_value());
  EXPECT_EQ(outcome.source.error().reason, "the VM ended meanwhile");
  ASSERT_FALSE(outcome.destination.has_value());
  EXPECT_NE(outcome.destination.error().reason.find("the guest never ran here"), std::string::npos)
      << outcome.destination.error().message();
}
TEST_F(MigrateStorm, IsNotOverForATimeThatIsOverOnceItSwitches) {
  Guest guest = small(2);
  ASSERT_NE(guest.vm, nullptr);
  migrate::SourceOptions options;
  options.timeout = seconds(3);
  options.max_downtime = seconds(10);
  const auto over = stopper::Clock::now() + milliseconds(3500);
  at_phase_ = [&](std::string_view phase) {
    if (phase == "handing over") // nobody is waited for: it is the time itself that is to pass
      std::this_thread::sleep_until(over);
  };
  const Outcome outcome = move(guest, options);
  if (!outcome.source && outcome.source.error().status == Status::kBusy)
    GTEST_SKIP() << "this host is too slow to begin the switch in time: " << outcome.source.error().message();
  ASSERT_TRUE(outcome.source.has_value()) << outcome.source.error().message();
  goes_on(*guest.vm);
}

// Its guest may have been given away by then, but never goes on here.
TEST_F(MigrateStorm, OfMachinesThatEnd) {
  const uint32_t count = migrations(4, 12, 100);
  for (uint32_t round = 0; round < count; ++round) {
    Guest guest = small(2);
    ASSERT_NE(guest.vm, nullptr);
    Vm& vm = *guest.vm;
    const Vm* const before = guest.vm.get();
    const Outcome outcome = move(guest, over(2), [&](Journey& journey) {
      await_some_moment(journey);
      if (!is_over(journey))
        vm.request_end({EndKind::kRequested, ""});
    });
    if (!outcome.source) {
      EXPECT_NE(outcome.source.error().reason.find("ended"), std::string::npos) << outcome.source.error().message();
    }
    if (outcome.destination) {
      ASSERT_NE(guest.vm.get(), before);
      ASSERT_NO_FATAL_FAILURE(goes_on(*guest.vm));
      ++moved_;
    } else {
      EXPECT_FALSE(outcome.source.has_value());
      EXPECT_EQ(guest.vm->state(), VmState::kEnded);
      EXPECT_EQ(guest.vm->wait_for_end().kind, EndKind::kRequested);
    }
  }
  std::printf("             %u of %u were moved before\n", moved_, count);
}

} // namespace
} // namespace stopvisor::vmm::testing
