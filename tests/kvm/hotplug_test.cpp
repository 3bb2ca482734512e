// SPDX-License-Identifier: Apache-2.0
// vCPUs that come and go: added, taken offline, brought online, by a guest of our own and under fire of stops.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <future>
#include <string>
#include <thread>

#include "tests/kvm/kvm_fixture.h"
#include "tests/kvm/raw_guest.h"
#include "tests/kvm/snare.h"

namespace stopvisor::vmm::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using stopper::CpuMask;

constexpr uint64_t kRounds = 0x20'0000; // of vCPU 0's loop
constexpr uint64_t kStart = 0x20'0004;  // the host sets it: vCPU 1 is sent INIT and SIPI, then it is cleared
constexpr uint64_t kSeen = 0x20'0008;   // vCPU 1's register, as vCPU 0 read it last
constexpr uint64_t kReset = 0x20'000c;  // the host sets it: reset
constexpr uint64_t kApCode = 0x8000;    // where the SIPI starts vCPU 1, in real mode
constexpr uint64_t kApRounds = 0x9000;

stopper::TimePoint in(milliseconds time) {
  return stopper::Clock::now() + time;
}
stopper::TimePoint soon() {
  return in(milliseconds(300)); // long enough for who is not hindered, on a busy host too
}
stopper::TimePoint some_time() {
  return in(seconds(60));
}

// vCPU 0 goes round: it gives up each of `cpus` vCPUs that is not wanted any more, where it `answers`.
Code polling_guest(uint32_t cpus, bool answers = true) {
  constexpr uint32_t kSpurious = 0xfee0'00f0; // KVM finds a local APIC by its number once one was enabled here
  constexpr uint32_t kIcrLow = 0xfee0'0300;
  constexpr uint32_t kIcrHigh = 0xfee0'0310;
  Code code;
  for (uint32_t cpu = 1; cpu < cpus; ++cpu) {
    code.dx(static_cast<uint16_t>(probe::kCpuPortBase + 4 * cpu)).bytes({0xed}); // in %dx, %eax
    if (cpu == 1)
      code.bytes({0xa3}).u32(kSeen); // mov %eax, kSeen
    if (answers)
      code.bytes({0xa8, probe::kCpuWanted, 0x75, 0x06, 0xb8}).u32(probe::kCpuGone).bytes({0xef}); // test; jnz; out
  }
  // cmpl $0, kStart; je over; movl: enable the local APIC, INIT, SIPI; movl $0, kStart
  code.bytes({0x83, 0x3d}).u32(kStart).bytes({0, 0x74, 50});
  code.bytes({0xc7, 0x05}).u32(kSpurious).u32(0x1ff);
  code.bytes({0xc7, 0x05}).u32(kIcrHigh).u32(1 << 24);
  code.bytes({0xc7, 0x05}).u32(kIcrLow).u32(0x4500);
  code.bytes({0xc7, 0x05}).u32(kIcrLow).u32(0x4600 | kApCode >> 12);
  code.bytes({0xc7, 0x05}).u32(kStart).u32(0);
  code.bytes({0x83, 0x3d}).u32(kReset).bytes({0, 0x74, 12}).out32(probe::kPowerPort, probe::kPowerReset);
  code.bytes({0xeb, 0xfe}); // never gets here; out32 and this are 12 bytes
  code.bytes({0xff, 0x05}).u32(kRounds);
  const auto length = static_cast<const std::vector<uint8_t>&>(code).size() + 5;
  return code.bytes({0xe9}).u32(0 - static_cast<uint32_t>(length)); // jmp to the start
}

class Hotplug : public KvmTest {
protected:
  static std::unique_ptr<Vm> start(const RawKernel& kernel, uint32_t cpus, uint32_t max_cpus = 4) {
    VmConfig config = raw(kernel.path(), cpus);
    config.max_cpus = max_cpus;
    return started(config);
  }
  // vCPU 0 has been round its loop from here on.
  static bool await_round(const Vm& vm) {
    const auto before = peek<uint32_t>(vm, kRounds);
    return await(vm, [&] { return peek<uint32_t>(vm, kRounds) - before >= 2; });
  }
  // vCPU 1 counts at kApRounds once it is started.
  static void start_ap(const Vm& vm) {
    constexpr std::array<uint8_t, 6> kCount{0xff, 0x06, 0x00, 0x90, 0xeb, 0xfa}; // incw 0x9000; jmp
    poke(vm, kApCode, kCount);
    poke<uint32_t>(vm, kStart, 1);
    ASSERT_TRUE(await(vm, [&] { return peek<uint32_t>(vm, kStart) == 0; }));
  }
  static bool await_ap(const Vm& vm) {
    const auto before = peek<uint16_t>(vm, kApRounds);
    return await(vm, [&] { return peek<uint16_t>(vm, kApRounds) != before; });
  }
  // vCPUs that a stop holds.
  static size_t participants(Vm& vm) {
    EXPECT_TRUE(vm.stops().run([](stopper::StopContext&) { return 0; }).has_value());
    const auto report = vm.stop_machine().last_report();
    return static_cast<size_t>(
        std::ranges::count_if(report.participants, [](const auto& one) { return !one.worker; }));
  }
  static std::expected<Registers, Error> held_registers(Vm& vm, uint32_t cpu) {
    std::expected<Registers, Error> result;
    EXPECT_TRUE(vm.stops()
                    .run([&](stopper::StopContext&) {
                      result = vm.registers(cpu);
                      return 0;
                    })
                    .has_value());
    return result;
  }
  template <class T>
  static void expect_refused(Status status, const char* words, const std::expected<T, Error>& result) {
    ASSERT_FALSE(result.has_value());
    EXPECT_EQ(result.error().status, status) << result.error().message();
    EXPECT_NE(result.error().message().find(words), std::string::npos) << result.error().message();
  }
  // vCPU threads of this process; KVM has threads of its own in it.
  static size_t threads() {
    size_t count = 0;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) {
      std::string name;
      std::getline(std::ifstream(entry.path() / "comm"), name);
      count += name.starts_with("vcpu/") ? 1 : 0;
    }
    return count;
  }
  // One that was joined leaves the list a moment later.
  static bool await_threads(size_t wanted) {
    for (const auto limit = some_time(); threads() != wanted;)
      if (stopper::Clock::now() > limit)
        return false;
    return true;
  }
};

TEST_F(Hotplug, AddsAVcpuThatWaitsToBeStartedAndIsHeldByStops) {
  const RawKernel kernel(polling_guest(3));
  const auto vm = start(kernel, 1);
  ASSERT_NE(vm, nullptr);
  EXPECT_EQ(participants(*vm), 1U);
  EXPECT_EQ(vm->add_cpu(some_time()), 1U);
  EXPECT_EQ(vm->add_cpu(some_time()), 2U);
  EXPECT_EQ(vm->cpu_count(), 3U);
  EXPECT_EQ(participants(*vm), 3U);
  EXPECT_TRUE(held_registers(*vm, 2).value_or(Registers{}).waiting);
  EXPECT_EQ(vm->vcpu_status(2).presence, VcpuPresence::kOnline);
  EXPECT_NE(vm->vcpu_status(2).thread_id, 0);
  ASSERT_TRUE(await_round(*vm));
  EXPECT_EQ(peek<uint32_t>(*vm, kSeen), probe::kCpuPresent | probe::kCpuWanted);
  start_ap(*vm);
  EXPECT_TRUE(await_ap(*vm));
}

// Has teeth where KVM gives each vCPU a TSC of its own; tests/unit/tsc_test.cpp has them everywhere.
TEST_F(Hotplug, AlignsTheTscOfAVcpuThatComes) {
  const RawKernel kernel(polling_guest(2));
  const auto vm = start(kernel, 1);
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(vm->add_cpu(some_time()));
  for (int turn = 0; turn < 2; ++turn) {
    std::array<uint64_t, 3> tsc{};
    ASSERT_TRUE(vm->stops()
                    .run([&](stopper::StopContext&) {
                      for (uint32_t i = 0; i < tsc.size(); ++i)
                        tsc.at(i) = vm->tsc(i % 2).value_or(0);
                      return 0;
                    })
                    .has_value());
    EXPECT_NE(tsc[0], 0U);
    EXPECT_LE(tsc[0], tsc[1]);
    EXPECT_LE(tsc[1], tsc[2]);
    ASSERT_TRUE(vm->offline_cpu(1, some_time(), false));
    ASSERT_TRUE(vm->online_cpu(1, some_time()));
  }
}

TEST_F(Hotplug, TakesAVcpuOutOfTheMachineAndBringsItBack) {
  const RawKernel kernel(polling_guest(2));
  const auto vm = start(kernel, 2);
  ASSERT_NE(vm, nullptr);
  start_ap(*vm);
  const int thread = vm->vcpu_status(1).thread_id;
  for (int turn = 0; turn < 20; ++turn) {
    ASSERT_TRUE(await_ap(*vm));
    const auto forced = vm->offline_cpu(1, some_time(), false);
    ASSERT_TRUE(forced.has_value()) << forced.error().message();
    EXPECT_FALSE(*forced);
    EXPECT_EQ(vm->vcpu_status(1).presence, VcpuPresence::kOffline);
    EXPECT_EQ(participants(*vm), 1U);
    const auto count = peek<uint16_t>(*vm, kApRounds);
    ASSERT_TRUE(await_round(*vm)); // the others go on
    EXPECT_EQ(peek<uint32_t>(*vm, kSeen), uint32_t{probe::kCpuPresent});
    start_ap(*vm); // to nobody: a vCPU comes back in the state that waits for what comes after it
    ASSERT_TRUE(await_round(*vm));
    EXPECT_EQ(peek<uint16_t>(*vm, kApRounds), count);

    const auto online = vm->online_cpu(1, some_time());
    ASSERT_TRUE(online.has_value()) << online.error().message();
    EXPECT_EQ(vm->vcpu_status(1).presence, VcpuPresence::kOnline);
    EXPECT_EQ(participants(*vm), 2U);
    ASSERT_TRUE(held_registers(*vm, 1).value_or(Registers{}).waiting);
    start_ap(*vm);
  }
  EXPECT_EQ(vm->vcpu_status(1).thread_id, thread);
}

TEST_F(Hotplug, RefusesWhatIsNotThere) {
  const RawKernel kernel(polling_guest(2));
  const auto vm = start(kernel, 2, 2);
  ASSERT_NE(vm, nullptr);
  expect_refused(Status::kRefused, "has all the 2 vCPUs", vm->add_cpu(some_time()));
  expect_refused(Status::kRefused, "vCPU 0", vm->offline_cpu(0, some_time(), true));
  expect_refused(Status::kUsage, "no vCPU 2: it has 0 to 1", vm->offline_cpu(2, some_time(), true));
  expect_refused(Status::kUsage, "no vCPU 4294967295", vm->online_cpu(~0U, some_time()));
  expect_refused(Status::kRefused, "vCPU 1 is online", vm->online_cpu(1, some_time()));
  ASSERT_TRUE(vm->offline_cpu(1, some_time(), false));
  expect_refused(Status::kRefused, "vCPU 1 is offline", vm->offline_cpu(1, some_time(), false));
  ASSERT_TRUE(vm->stops()
                  .run([&](stopper::StopContext&) {
                    expect_refused(Status::kFailed, "", vm->online_cpu(1, some_time()));
                    return 0;
                  })
                  .has_value());
}

TEST_F(Hotplug, LeavesAVcpuToAGuestThatDoesNotGiveItUpUnlessForced) {
  const RawKernel kernel(polling_guest(2, false));
  const auto vm = start(kernel, 2);
  ASSERT_NE(vm, nullptr);
  start_ap(*vm);
  expect_refused(Status::kBusy, "did not give up vCPU 1 within ", vm->offline_cpu(1, soon(), false));
  EXPECT_EQ(vm->vcpu_status(1).presence, VcpuPresence::kOnline);
  ASSERT_TRUE(await_round(*vm));
  EXPECT_EQ(peek<uint32_t>(*vm, kSeen), probe::kCpuPresent | probe::kCpuWanted);
  EXPECT_TRUE(await_ap(*vm));

  EXPECT_EQ(vm->offline_cpu(1, in(seconds(4)), true), true);
  EXPECT_EQ(vm->vcpu_status(1).presence, VcpuPresence::kOffline);
  EXPECT_EQ(participants(*vm), 1U);
}

TEST_F(Hotplug, IsBusyWhileTheVmIsHeldAndChangesNothing) {
  const RawKernel kernel(polling_guest(3));
  const auto vm = start(kernel, 3);
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(vm->offline_cpu(2, some_time(), false));
  ASSERT_TRUE(await_round(*vm));
  const size_t before = threads();
  ASSERT_TRUE(vm->stops().acquire_hold().has_value());
  expect_refused(Status::kBusy, "the VM is held", vm->add_cpu(soon()));
  expect_refused(Status::kBusy, "the VM is held", vm->offline_cpu(1, soon(), false));
  expect_refused(Status::kBusy, "the VM is held", vm->offline_cpu(1, soon(), true));
  expect_refused(Status::kBusy, "the VM is held", vm->online_cpu(2, soon()));
  EXPECT_EQ(vm->cpu_count(), 3U);
  EXPECT_EQ(vm->vcpu_status(1).presence, VcpuPresence::kOnline);
  EXPECT_EQ(vm->vcpu_status(2).presence, VcpuPresence::kOffline);
  EXPECT_TRUE(await_threads(before));
  vm->stops().release_hold();
  EXPECT_EQ(participants(*vm), 2U);
  EXPECT_EQ(vm->add_cpu(some_time()), 3U); // with what was made for it before
  EXPECT_TRUE(vm->online_cpu(2, some_time()));
  EXPECT_TRUE(vm->offline_cpu(1, some_time(), false));
  EXPECT_EQ(participants(*vm), 3U);
}

// The guest runs on under a hold of one vCPU, and gives it up; but it cannot be taken away then.
TEST_F(Hotplug, WantsAVcpuAgainThatTheGuestGaveUpInVain) {
  const RawKernel kernel(polling_guest(2));
  const auto vm = start(kernel, 2);
  ASSERT_NE(vm, nullptr);
  {
    const CpuMask one = CpuMask::of(1);
    auto held = vm->stop_machine().hold({}, &one);
    ASSERT_TRUE(held.has_value());
    held->detach();
    expect_refused(Status::kBusy, "deadline passed", vm->offline_cpu(1, in(seconds(3)), false));
  }
  EXPECT_EQ(vm->vcpu_status(1).presence, VcpuPresence::kOnline);
  ASSERT_TRUE(await_round(*vm));
  EXPECT_EQ(peek<uint32_t>(*vm, kSeen), probe::kCpuPresent | probe::kCpuWanted);
  start_ap(*vm);
  EXPECT_TRUE(await_ap(*vm));
}

TEST_F(Hotplug, WaitsForAStopThatIsBeingGathered) {
  const RawKernel kernel(polling_guest(2));
  Snare snare;
  VmConfig config = raw(kernel.path(), 2);
  const auto vm = make(config);
  ASSERT_NE(vm, nullptr);
  vm->use_hooks(&snare);
  ASSERT_TRUE(vm->start().has_value());
  ASSERT_TRUE(await_round(*vm));
  snare.arm(VcpuPoint::kAfterCheck, 0);
  snare.caught.acquire(); // vCPU 0 does not come
  auto stop = std::async(std::launch::async,
                         [&] { return vm->stops().run([](stopper::StopContext&) { return 0; }).has_value(); });
  EXPECT_TRUE(await(*vm, [&] { return vm->stops().waiting() != 0; }));
  while (snare.signalled.try_acquire()) {
  }
  snare.signalled.acquire(); // it kicks: the stop has the hotplug lock
  expect_refused(Status::kBusy, "deadline passed", vm->offline_cpu(1, soon(), true));
  EXPECT_EQ(vm->vcpu_status(1).presence, VcpuPresence::kOnline);
  auto offline = std::async(std::launch::async, [&] { return vm->offline_cpu(1, some_time(), false).has_value(); });
  snare.let_go.release();
  EXPECT_TRUE(stop.get());
  EXPECT_TRUE(offline.get());
  EXPECT_EQ(participants(*vm), 1U);
}

TEST_F(Hotplug, TellsWhoChangesVcpusThatTheVmHasEnded) {
  const RawKernel kernel(polling_guest(2, false));
  for (int turn = 0; turn < 20; ++turn) {
    const auto vm = start(kernel, 2);
    ASSERT_NE(vm, nullptr);
    if (turn % 2 == 0) {
      ASSERT_TRUE(vm->stops().acquire_hold().has_value());
    }
    auto offline = std::async(std::launch::async, [&] { return vm->offline_cpu(1, some_time(), false); });
    if (turn % 4 >= 2) {
      EXPECT_TRUE(await(*vm, [&] { return vm->vcpu_status(1).presence == VcpuPresence::kLeaving; }));
    }
    auto add = std::async(std::launch::async, [&] { return vm->add_cpu(some_time()); });
    vm->request_end({EndKind::kRequested, ""});
    EXPECT_EQ(vm->wait_for_end().kind, EndKind::kRequested);
    expect_refused(Status::kFailed, "", offline.get());
    if (const auto added = add.get(); !added) { // it may have come first
      EXPECT_EQ(added.error().status, Status::kFailed) << added.error().message();
    }
    expect_refused(Status::kFailed, "not running", vm->add_cpu(some_time()));
  }
}

TEST_F(Hotplug, EndsWithVcpusThatAreOffline) {
  const RawKernel kernel(polling_guest(2));
  for (int turn = 0; turn < 10; ++turn) {
    const auto vm = start(kernel, 2);
    ASSERT_NE(vm, nullptr);
    ASSERT_TRUE(vm->offline_cpu(1, some_time(), false));
    vm->request_end({EndKind::kRequested, ""});
    EXPECT_EQ(vm->wait_for_end().kind, EndKind::kRequested);
    EXPECT_TRUE(await_threads(0));
  }
}

TEST_F(Hotplug, IsNotUndoneByAReset) {
  const RawKernel kernel(polling_guest(3));
  const auto vm = start(kernel, 2);
  ASSERT_NE(vm, nullptr);
  ASSERT_EQ(vm->add_cpu(some_time()), 2U);
  ASSERT_TRUE(vm->offline_cpu(1, some_time(), false));
  for (uint64_t turn = 1; turn <= 3; ++turn) {
    ASSERT_TRUE(await_round(*vm));
    poke<uint32_t>(*vm, kReset, 1);
    ASSERT_TRUE(await(*vm, [&] { return vm->resets() == turn; }));
    ASSERT_TRUE(await_round(*vm));
    EXPECT_EQ(vm->cpu_count(), 3U);
    EXPECT_EQ(vm->vcpu_status(1).presence, VcpuPresence::kOffline);
    EXPECT_EQ(vm->vcpu_status(2).presence, VcpuPresence::kOnline);
    EXPECT_EQ(peek<uint32_t>(*vm, kSeen), uint32_t{probe::kCpuPresent});
    EXPECT_EQ(participants(*vm), 2U);
  }
  EXPECT_TRUE(vm->online_cpu(1, some_time()));
  start_ap(*vm);
  EXPECT_TRUE(await_ap(*vm));
}

TEST_F(Hotplug, TakesAResetForGivingUpTheVcpu) {
  const RawKernel kernel(polling_guest(2, false));
  const auto vm = start(kernel, 2);
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(await_round(*vm));
  auto offline = std::async(std::launch::async, [&] { return vm->offline_cpu(1, some_time(), false); });
  ASSERT_TRUE(await(*vm, [&] { return vm->vcpu_status(1).presence == VcpuPresence::kLeaving; }));
  poke<uint32_t>(*vm, kReset, 1);
  EXPECT_EQ(offline.get(), false);
  EXPECT_EQ(vm->resets(), 1U);
}

// Stops of all kinds from two threads, while a third changes who there is.
TEST_F(Hotplug, RacesWithStopsOfAllKinds) {
  constexpr uint32_t kMost = 6;
  constexpr int kStops = 400;
  constexpr int kChanges = 60;
  const RawKernel kernel(polling_guest(kMost));
  const auto vm = start(kernel, 2, kMost);
  ASSERT_NE(vm, nullptr);
  start_ap(*vm);
  const auto stopping = [&](int seed) {
    const auto nothing = [](stopper::StopContext&) { return 0; };
    const auto fine = [](const auto& result) { // whoever was asked for may be offline
      return result.has_value() || result.error().code == stopper::StopErrc::kNoSuchCpu;
    };
    for (int i = 0; i < kStops; ++i) {
      const uint32_t cpu = static_cast<uint32_t>(i + seed) % kMost;
      const CpuMask some = CpuMask::of(cpu);
      switch ((i + seed) % 6) {
      case 0:
        EXPECT_TRUE(vm->stops().run(nothing).has_value());
        break;
      case 1:
        EXPECT_TRUE(vm->stops().acquire_hold().has_value());
        EXPECT_TRUE(vm->stops().release_hold());
        break;
      case 2:
        EXPECT_TRUE(fine(vm->stop_machine().stop_one_cpu(cpu, nothing)));
        break;
      case 3:
        EXPECT_TRUE(fine(vm->stop_machine().hold({}, &some)));
        break;
      case 4:
        EXPECT_TRUE(fine(vm->stop_machine().stop_two_cpus(cpu, (cpu + 1) % kMost, nothing)));
        break;
      default:
        EXPECT_TRUE(fine(vm->stop_machine().stop_cpus(CpuMask::first_n(kMost), nothing)));
        break;
      }
    }
  };
  std::thread one(stopping, 0);
  std::thread two(stopping, 3);
  for (int i = 0; i < kChanges; ++i) {
    const uint32_t cpu = 1 + static_cast<uint32_t>(i) % (vm->cpu_count() - 1);
    if (i % 12 == 5 && vm->cpu_count() < kMost) {
      EXPECT_TRUE(vm->add_cpu(some_time()));
    } else if (vm->vcpu_status(cpu).presence == VcpuPresence::kOffline) {
      EXPECT_TRUE(vm->online_cpu(cpu, some_time()));
    } else {
      EXPECT_EQ(vm->offline_cpu(cpu, some_time(), false), false);
    }
  }
  one.join();
  two.join();
  uint32_t online = 0;
  for (uint32_t cpu = 0; cpu < vm->cpu_count(); ++cpu)
    online += vm->vcpu_status(cpu).presence == VcpuPresence::kOnline ? 1 : 0;
  EXPECT_EQ(participants(*vm), online);
  EXPECT_EQ(vm->cpu_count(), kMost);
}

} // namespace
} // namespace stopvisor::vmm::testing
