// SPDX-License-Identifier: Apache-2.0
// The doorbell's worker writes guest memory by itself. A stop that did without it would be found out here.
#include <atomic>
#include <chrono>
#include <semaphore>
#include <thread>

#include "tests/kvm/kvm_fixture.h"
#include "tests/kvm/raw_guest.h"
#include "tests/kvm/snare.h"

namespace stopvisor::vmm::testing {
namespace {

constexpr uint64_t kNumber = 0x20'0000; // 8 bytes: what the guest rings with
constexpr uint64_t kUp = 0x20'1000;
constexpr uint64_t kReset = 0x20'2000; // the host sets it
constexpr uint32_t kBoxes = 4;         // vCPU 0 rings for the others too

using Mailbox = std::array<uint64_t, probe::kMailboxWords>;

// movq kNumber, %mm0; movq %mm0, ring register of each box: 8-byte writes
Code ring_all() {
  Code code;
  code.bytes({0x0f, 0x6f, 0x05}).u32(kNumber);
  for (uint32_t cpu = 0; cpu < kBoxes; ++cpu)
    code.bytes({0x0f, 0x7f, 0x05})
        .u32(static_cast<uint32_t>(probe::kDoorbellMmioGpa) + 0x40 * cpu + probe::kDoorbellMmioRing);
  return code;
}

// Counts and rings for as long as it lives: incl kNumber; ring; jmp back
Code ringing_guest() {
  Code code;
  code.bytes({0xff, 0x05}).u32(kNumber).append(ring_all());
  return code.bytes({0xeb, static_cast<uint8_t>(-static_cast<int>(code.size() + 2))});
}

// movl $1, kUp; 10: cmpl $0, kNumber; je 10; ring once; movl $2, kUp; 0: cmpl $0, kReset; je 0; ask for a reset;
// spin
Code guest_that_rings_and_resets() {
  Code code;
  code.bytes({0xc7, 0x05}).u32(kUp).u32(1);
  code.bytes({0x83, 0x3d}).u32(kNumber).bytes({0x00, 0x74, 0xf7}).append(ring_all());
  code.bytes({0xc7, 0x05}).u32(kUp).u32(2);
  code.bytes({0x83, 0x3d}).u32(kReset).bytes({0x00, 0x74, 0xf7});
  return code.out32(probe::kPowerPort, probe::kPowerReset).spin();
}

class Worker : public KvmTest {
protected:
  static VmConfig config_of(const RawKernel& kernel) {
    VmConfig config = raw(kernel.path(), 2);
    config.memory_bytes = probe::kMinMemoryBytes; // it holds the mailboxes
    return config;
  }
  static uint64_t word(const Vm& vm, uint32_t cpu, uint32_t n) {
    return peek<uint64_t>(vm, probe::mailbox_word_gpa(cpu, n));
  }
  static Mailbox mailbox(const Vm& vm, uint32_t cpu) {
    Mailbox box;
    for (uint32_t n = 0; n < probe::kMailboxWords; ++n)
      box[n] = word(vm, cpu, n);
    return box;
  }
  static bool whole(const Mailbox& box) {
    return std::ranges::all_of(box, [&](uint64_t value) { return value == box[0]; });
  }
};

TEST_F(Worker, IsAtRestUnderEveryStop) {
  const RawKernel kernel(ringing_guest());
  const auto vm = started(config_of(kernel));
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(await(*vm, [&] { return word(*vm, kBoxes - 1, 0) != 0; }));
  constexpr int kStops = 3000;
  constexpr int kLooks = 30;
  uint64_t last = 0;
  for (int turn = 0; turn < kStops; ++turn) {
    ASSERT_TRUE(await(*vm, [&] { return word(*vm, 0, 0) != last; })); // it is at work between the stops
    const auto stop = vm->stops().run([&](stopper::StopContext&) {
      std::array<Mailbox, kBoxes> first;
      for (uint32_t cpu = 0; cpu < kBoxes; ++cpu) {
        first[cpu] = mailbox(*vm, cpu);
        EXPECT_TRUE(whole(first[cpu])) << "box " << cpu << " at stop " << turn;
      }
      for (int look = 0; look < kLooks; ++look)
        for (uint32_t cpu = 0; cpu < kBoxes; ++cpu)
          EXPECT_EQ(mailbox(*vm, cpu), first[cpu]) << "box " << cpu << " at stop " << turn;
      last = first[0][0];
      return 0;
    });
    ASSERT_TRUE(stop.has_value()) << vm->explain("stop", stop.error()).message();
    ASSERT_FALSE(HasFailure());
  }
  const auto report = vm->stop_machine().last_report();
  ASSERT_GE(report.participants.size(), 3U); // and the other devices' workers
  EXPECT_TRUE(report.participants[2].worker);
  EXPECT_EQ(report.participants[2].cpu, vm->stop_machine().first_worker());
}

// A Snare that lets a worker (the doorbell's) go on when it has been kicked: when the stop waits for it, and not
// before.
class LetGoWhenKicked final : public VcpuHooks {
public:
  void at(VcpuPoint point, uint32_t cpu) noexcept override {
    if (point == VcpuPoint::kWorkerKicked && cpu == worker &&
        kicks.fetch_add(1, std::memory_order_relaxed) == 0) // counts, no more
      snare.let_go.release();
    snare.at(point, cpu);
  }
  uint32_t worker = UINT32_MAX; // its number; before the VM starts
  Snare snare;
  std::atomic<int> kicks{0};
};

TEST_F(Worker, FinishesItsJobBeforeItIsHeld) {
  const RawKernel kernel(ringing_guest());
  LetGoWhenKicked hooks;
  const auto vm = make(config_of(kernel));
  ASSERT_NE(vm, nullptr);
  hooks.worker = vm->stop_machine().first_worker();
  vm->use_hooks(&hooks);
  hooks.snare.arm(VcpuPoint::kInJob, vm->stop_machine().first_worker());
  ASSERT_TRUE(vm->start().has_value());
  hooks.snare.caught.acquire();
  EXPECT_NE(word(*vm, 0, 0), 0U); // half of the mailbox is written
  EXPECT_EQ(word(*vm, 0, probe::kMailboxWords - 1), 0U);
  const auto stop = vm->stops().run([&](stopper::StopContext&) {
    EXPECT_GE(hooks.kicks.load(std::memory_order_relaxed), 1); // again, where that takes long
    EXPECT_TRUE(whole(mailbox(*vm, 0)));
    EXPECT_NE(word(*vm, 0, 0), 0U);
    return 0;
  });
  EXPECT_TRUE(stop.has_value());
  if (hooks.kicks.load(std::memory_order_relaxed) == 0) // the stop did without it: let the test end
    hooks.snare.let_go.release();
  vm->request_end({EndKind::kRequested, ""});
  vm->wait_for_end();
}

TEST_F(Worker, ThatCannotComeFailsTheStopAtItsDeadlineAndIsNamed) {
  const RawKernel kernel(ringing_guest());
  Snare snare;
  const auto vm = make(config_of(kernel));
  ASSERT_NE(vm, nullptr);
  vm->use_hooks(&snare);
  const stopper::CpuId worker = vm->stop_machine().first_worker();
  snare.arm(VcpuPoint::kInJob, worker);
  ASSERT_TRUE(vm->start().has_value());
  snare.caught.acquire();
  const auto late = vm->stops().run([](stopper::StopContext&) { return 0; },
                                    {.deadline = stopper::Clock::now() + std::chrono::seconds(1)});
  ASSERT_FALSE(late.has_value());
  EXPECT_EQ(late.error().code, stopper::StopErrc::kDeadline);
  EXPECT_EQ(late.error().stragglers.count(), 1U);
  EXPECT_TRUE(late.error().stragglers.test(worker));
  const Error error = vm->explain("stop", late.error());
  EXPECT_EQ(error.status, Status::kBusy);
  EXPECT_NE(error.reason.find("worker doorbell (thread "), std::string::npos) << error.reason;
  EXPECT_EQ(error.reason.find("vCPU"), std::string::npos) << error.reason;
  EXPECT_EQ(vm->stop_machine().last_report().end, stopper::StopEnd::kAborted);
  const auto before = peek<uint32_t>(*vm, kNumber); // the guest goes on without it
  EXPECT_TRUE(await(*vm, [&] { return peek<uint32_t>(*vm, kNumber) > before + 10; }));
  snare.let_go.release();
  const auto later = vm->stops().run([&](stopper::StopContext&) { return whole(mailbox(*vm, 0)) ? 1 : 2; });
  ASSERT_TRUE(later.has_value()) << vm->explain("stop", later.error()).message();
  EXPECT_EQ(later->result, 1);
}

TEST_F(Worker, DoesTheNewestJobOfEachBoxHoweverOftenTheGuestRang) {
  const RawKernel kernel(ringing_guest());
  Snare snare;
  const auto vm = make(config_of(kernel));
  ASSERT_NE(vm, nullptr);
  vm->use_hooks(&snare);
  snare.arm(VcpuPoint::kInJob, vm->stop_machine().first_worker());
  ASSERT_TRUE(vm->start().has_value());
  snare.caught.acquire();
  ASSERT_TRUE(await(*vm, [&] { return peek<uint32_t>(*vm, kNumber) > 1000; })); // nobody waits for the worker
  const uint64_t done = vm->worker_status().front().jobs_done;
  const auto rung = peek<uint32_t>(*vm, kNumber);
  snare.let_go.release();
  ASSERT_TRUE(await(*vm, [&] { return word(*vm, kBoxes - 1, 0) > 1000; }));
  // Of what had piled up, one job a box; and what the guest has rung for since.
  const uint64_t jobs = vm->worker_status().front().jobs_done - done;
  EXPECT_LE(jobs, (peek<uint32_t>(*vm, kNumber) - rung + 2) * uint64_t{kBoxes});
}

TEST_F(Worker, EndsWithTheVmWhereverItIs) {
  const RawKernel kernel(ringing_guest());
  for (int turn = 0; turn < 30; ++turn) {
    const auto vm = started(config_of(kernel));
    ASSERT_NE(vm, nullptr);
    ASSERT_TRUE(await(*vm, [&] { return word(*vm, 0, 0) != 0; }));
    if (turn % 3 == 0) {
      ASSERT_TRUE(vm->stops().acquire_hold().has_value()); // it is held
    }
    std::thread client;
    if (turn % 3 == 1) // a stop is on its way
      client = std::thread([&] {
        while (vm->stops().run([](stopper::StopContext&) { return 0; })) {
        }
      });
    vm->request_end({EndKind::kRequested, ""});
    EXPECT_EQ(vm->wait_for_end().kind, EndKind::kRequested);
    if (client.joinable())
      client.join();
    EXPECT_EQ(vm->worker_status().front().thread_id, 0);
  }
}

TEST_F(Worker, DropsItsJobsWhenTheMachineIsReset) {
  const RawKernel kernel(guest_that_rings_and_resets());
  LetGoWhenKicked hooks;
  const auto vm = make(config_of(kernel));
  ASSERT_NE(vm, nullptr);
  hooks.worker = vm->stop_machine().first_worker();
  vm->use_hooks(&hooks);
  const stopper::CpuId worker = vm->stop_machine().first_worker();
  hooks.snare.arm(VcpuPoint::kInJob, worker);
  ASSERT_TRUE(vm->start().has_value());
  ASSERT_TRUE(await(*vm, [&] { return peek<uint32_t>(*vm, kUp) == 1; }));
  poke<uint64_t>(*vm, kNumber, 9);
  hooks.snare.caught.acquire();   // in box 0; the others are rung for before the guest looks at kReset
  poke<uint32_t>(*vm, kReset, 1); // the stop of the reset kicks the worker, and finds three jobs that wait
  ASSERT_TRUE(await(*vm, [&] { return vm->resets() == 1; }));
  ASSERT_TRUE(await(*vm, [&] { return peek<uint32_t>(*vm, kUp) == 1; }));
  const auto stop = vm->stops().run([&](stopper::StopContext&) {
    for (uint32_t cpu = 0; cpu < kBoxes; ++cpu)
      EXPECT_EQ(mailbox(*vm, cpu), Mailbox{}) << "box " << cpu;
    return 0;
  });
  ASSERT_TRUE(stop.has_value());
  poke<uint64_t>(*vm, kNumber, 2);
  ASSERT_TRUE(await(*vm, [&] { return vm->worker_status().front().jobs_done >= 1 + kBoxes; }));
  ASSERT_TRUE(await(*vm, [&] { return word(*vm, kBoxes - 1, probe::kMailboxWords - 1) == 2; }));
  EXPECT_EQ(vm->worker_status().front().jobs_done, 1 + kBoxes); // the one it was in, and the new guest's
}

// The race that DeviceWorker's loop tells of: the bell rings when the worker has looked and does not sleep yet.
TEST_F(Worker, HearsABellThatRingsAsItGoesToSleep) {
  const RawKernel kernel(guest_that_rings_and_resets());
  Snare snare;
  const auto vm = make(config_of(kernel));
  ASSERT_NE(vm, nullptr);
  vm->use_hooks(&snare);
  snare.arm(VcpuPoint::kBeforeSleep, vm->stop_machine().first_worker());
  ASSERT_TRUE(vm->start().has_value());
  snare.caught.acquire();
  poke<uint64_t>(*vm, kNumber, 9);
  ASSERT_TRUE(await(*vm, [&] { return peek<uint32_t>(*vm, kUp) == 2; })); // it has rung
  snare.let_go.release();
  EXPECT_TRUE(await(*vm, [&] { return word(*vm, kBoxes - 1, probe::kMailboxWords - 1) == 9; }));
}

TEST_F(Worker, AtRestIsPassedByWithoutBeingWoken) {
  const RawKernel kernel(Code().spin());
  LetGoWhenKicked hooks; // counts kicks
  const auto vm = make(config_of(kernel));
  ASSERT_NE(vm, nullptr);
  hooks.worker = vm->stop_machine().first_worker();
  vm->use_hooks(&hooks);
  hooks.snare.arm(VcpuPoint::kBeforeSleep, vm->stop_machine().first_worker());
  ASSERT_TRUE(vm->start().has_value());
  hooks.snare.caught.acquire(); // it is at rest
  ASSERT_TRUE(vm->stops().run([](stopper::StopContext&) { return 0; }).has_value());
  EXPECT_EQ(hooks.kicks.load(std::memory_order_relaxed), 0);
  hooks.snare.let_go.release();
  const auto report = vm->stop_machine().last_report();
  ASSERT_GE(report.participants.size(), 3U);
  const stopper::ParticipantReport& worker = report.participants[2];
  EXPECT_TRUE(worker.worker);
  EXPECT_EQ(worker.kicked_ns, 0);
  EXPECT_GE(worker.held_ns, report.participants.front().held_ns);
  EXPECT_GE(worker.released_ns, report.exit_ns);
}

// A job comes as the vCPU is on its way out: the worker rises under the stop, and waits.
TEST_F(Worker, ThatRisesUnderAStopWaitsForItsEnd) {
  const RawKernel kernel(guest_that_rings_and_resets());
  Snare snare;
  const auto vm = make(config_of(kernel));
  ASSERT_NE(vm, nullptr);
  vm->use_hooks(&snare);
  snare.arm(VcpuPoint::kBeforeSleep, vm->stop_machine().first_worker());
  ASSERT_TRUE(vm->start().has_value());
  snare.caught.acquire();
  poke<uint64_t>(*vm, kNumber, 9);
  ASSERT_TRUE(await(*vm, [&] { return peek<uint32_t>(*vm, kUp) == 2; })); // it has rung
  const auto stop = vm->stops().run([&](stopper::StopContext&) {
    snare.let_go.release();
    for (int look = 0; look < 20'000; ++look) {
      if (word(*vm, 0, 0) != 0)
        return 1;
      std::this_thread::yield(); // it has the processor for itself
    }
    return 0;
  });
  ASSERT_TRUE(stop.has_value());
  EXPECT_EQ(stop->result, 0);
  EXPECT_TRUE(await(*vm, [&] { return word(*vm, kBoxes - 1, probe::kMailboxWords - 1) == 9; }));
}

// The probe guest rings again as soon as it has seen its mail, and checks it.
TEST_F(Worker, WritesTheProbesMailBetweenStopsOnly) {
  constexpr uint32_t kCpus = 4;
  const auto vm = started(probe(kCpus, "scenarios=io"));
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(await(*vm, [&] { return cpus_running(*vm) == kCpus; }));
  for (int turn = 0; turn < 1000; ++turn) {
    const auto stop = vm->stops().run([&](stopper::StopContext&) {
      std::array<Mailbox, kCpus> first;
      for (uint32_t cpu = 0; cpu < kCpus; ++cpu) {
        first[cpu] = mailbox(*vm, cpu);
        EXPECT_TRUE(whole(first[cpu])) << "vCPU " << cpu;
        EXPECT_EQ(results(*vm, cpu).mail_bad, 0U) << "vCPU " << cpu;
      }
      for (int look = 0; look < 10; ++look)
        for (uint32_t cpu = 0; cpu < kCpus; ++cpu)
          EXPECT_EQ(mailbox(*vm, cpu), first[cpu]) << "vCPU " << cpu;
      return 0;
    });
    ASSERT_TRUE(stop.has_value()) << vm->explain("stop", stop.error()).message();
    ASSERT_FALSE(HasFailure());
  }
  for (uint32_t cpu = 0; cpu < kCpus; ++cpu) { // and it goes on
    const uint64_t before = results(*vm, cpu).mail_seen;
    EXPECT_TRUE(await(*vm, [&] { return results(*vm, cpu).mail_seen > before; }));
  }
}

TEST_F(Worker, LeavesAVmAloneWhoseMemoryHasNoMailboxes) {
  const RawKernel kernel(ringing_guest());
  const auto vm = started(raw(kernel.path(), 1)); // 4 MiB
  ASSERT_NE(vm, nullptr);
  EXPECT_TRUE(await(*vm, [&] { return vm->worker_status().front().jobs_done > 100; }));
  EXPECT_TRUE(vm->stops().run([](stopper::StopContext&) { return 0; }).has_value());
}

} // namespace
} // namespace stopvisor::vmm::testing
