// SPDX-License-Identifier: Apache-2.0
// Stops of running vCPUs: the guest is at rest under them, and notices nothing.
#include <atomic>
#include <future>
#include <thread>

#include "tests/kvm/kvm_fixture.h"
#include "tests/kvm/raw_guest.h"
#include "tests/kvm/snare.h"

namespace stopvisor::vmm::testing {
namespace {

using Stop = KvmTest;

TEST_F(Stop, HoldsASpinningVcpuWhichThenGoesOn) {
  const RawKernel kernel(Code().bytes({0xff, 0x05}).u32(0x20'0000).bytes({0xeb, 0xf8})); // incl 0x200000; jmp
  const auto vm = started(raw(kernel.path()));
  ASSERT_NE(vm, nullptr);
  for (int turn = 0; turn < 50; ++turn) {
    const auto before = peek<uint32_t>(*vm, 0x20'0000);
    ASSERT_TRUE(await(*vm, [&] { return peek<uint32_t>(*vm, 0x20'0000) != before; }));
    uint32_t first = 0;
    uint32_t second = 1;
    uint64_t rip = 0;
    const auto stop = vm->stops().run([&](stopper::StopContext&) {
      first = peek<uint32_t>(*vm, 0x20'0000);
      rip = vm->registers(0).value_or(Registers{}).rip;
      second = peek<uint32_t>(*vm, 0x20'0000);
      return 7;
    });
    ASSERT_TRUE(stop.has_value()) << vm->explain("stop", stop.error()).message();
    EXPECT_EQ(stop->result, 7);
    EXPECT_EQ(first, second);
    EXPECT_TRUE(rip == kRawEntry || rip == kRawEntry + 6) << std::hex << rip;
  }
}

// Rule 2. The device has counted a read exactly when EAX has its answer: were the instruction left unfinished, the
// device would be one ahead of the register.
TEST_F(Stop, FinishesTheInstructionOfAnAccessFirst) {
  const RawKernel kernel(Code().dx(probe::kDoorbellPortBase).bytes({0xed, 0xeb, 0xfd})); // in %dx, %eax; jmp
  const auto vm = started(raw(kernel.path()));
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(await(*vm, [&] { return vm->doorbell_counts(0).port_reads != 0; }));
  for (int turn = 0; turn < 500; ++turn) {
    uint64_t served = 0;
    Registers registers;
    ASSERT_TRUE(vm->stops()
                    .run([&](stopper::StopContext&) {
                      served = vm->doorbell_counts(0).port_reads;
                      registers = vm->registers(0).value_or(Registers{});
                      return 0;
                    })
                    .has_value());
    ASSERT_EQ(registers.general[0], served);
  }
}

// The same for MMIO: the thread is caught when the read was served, and the stop asked for there.
TEST_F(Stop, FinishesTheInstructionOfAnMmioReadFirst) {
  const RawKernel kernel(mmio_reads());
  Snare snare;
  const auto vm = make(raw(kernel.path()));
  ASSERT_NE(vm, nullptr);
  vm->use_hooks(&snare);
  ASSERT_TRUE(vm->start().has_value());
  for (int turn = 0; turn < 20; ++turn) {
    catch_at(*vm, snare, "KVM_EXIT_MMIO");
    Registers registers;
    auto stop = std::async(std::launch::async, [&] {
      return vm->stops().run([&](stopper::StopContext&) {
        registers = vm->registers(0).value_or(Registers{});
        return 0;
      });
    });
    snare.signalled.acquire();
    snare.let_go.release();
    ASSERT_TRUE(stop.get().has_value());
    EXPECT_EQ(registers.rip, kRawEntry + kAfterMmioRead);
    EXPECT_EQ(registers.general[0], 0xffff'ffffU);
  }
}

TEST_F(Stop, SeesTheRegistersOfAStringInstructionTogether) {
  // mov $0x200000, %esi; mov $0xc8000000, %edi; mov $16, %ecx; cld; rep movsl: one instruction, 16 exits
  const RawKernel kernel(Code()
                             .bytes({0xbe})
                             .u32(0x20'0000)
                             .bytes({0xbf})
                             .u32(0xc800'0000)
                             .bytes({0xb9})
                             .u32(16)
                             .bytes({0xfc, 0xf3, 0xa5, 0xff, 0x05})
                             .u32(0x20'1000)
                             .bytes({0xeb, 0xe6})); // rep movsl; incl 0x201000; jmp back to the start
  const auto vm = started(raw(kernel.path()));
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(await(*vm, [&] { return peek<uint32_t>(*vm, 0x20'1000) != 0; }));
  for (int turn = 0; turn < 500; ++turn) {
    Registers registers;
    ASSERT_TRUE(vm->stops()
                    .run([&](stopper::StopContext&) {
                      registers = vm->registers(0).value_or(Registers{});
                      return 0;
                    })
                    .has_value());
    // Between two elements of the string instruction, ESI, EDI and ECX belong together.
    if (registers.rip == kRawEntry + 16) {
      const uint64_t done = 16 - registers.general[2];
      ASSERT_EQ(registers.general[4], 0x20'0000 + 4 * done);
      ASSERT_EQ(registers.general[5], 0xc800'0000 + 4 * done);
    }
  }
}

TEST_F(Stop, HoldsVcpusThatWaitToBeStarted) {
  const RawKernel kernel(Code().spin());
  const auto vm = started(raw(kernel.path(), 4));
  ASSERT_NE(vm, nullptr);
  for (int turn = 0; turn < 20; ++turn) {
    const auto stop = vm->stops().run([&](stopper::StopContext&) {
      for (uint32_t cpu = 1; cpu < 4; ++cpu)
        EXPECT_TRUE(vm->registers(cpu).value_or(Registers{}).waiting);
      return 0;
    });
    ASSERT_TRUE(stop.has_value());
  }
  const auto report = vm->stop_machine().last_report();
  EXPECT_EQ(report.end, stopper::StopEnd::kCompleted);
  EXPECT_GE(report.participants.size(), 5U); // and device workers
}

TEST_F(Stop, HoldsAHaltedVcpu) {
  const RawKernel kernel(Code().bytes({0xfa, 0xf4}).spin()); // cli; hlt
  const auto vm = started(raw(kernel.path()));
  ASSERT_NE(vm, nullptr);
  bool halted = false;
  while (!halted)
    ASSERT_TRUE(vm->stops()
                    .run([&](stopper::StopContext&) {
                      halted = vm->registers(0).value_or(Registers{}).halted;
                      return 0;
                    })
                    .has_value());
}

TEST_F(Stop, OfTheFirstInstructionIsPossible) {
  const RawKernel kernel(Code().bytes({0xff, 0x05}).u32(0x20'0000).bytes({0xeb, 0xf8})); // incl 0x200000; jmp
  VmConfig config = raw(kernel.path(), 2);
  config.start_held = true;
  const auto vm = started(config);
  ASSERT_NE(vm, nullptr);
  EXPECT_EQ(vm->state(), VmState::kHeld);
  EXPECT_EQ(vm->stops().holds(), 1U);
  EXPECT_EQ(vm->vcpu_status(0).exits, 0U);
  const auto stop = vm->stops().run([&](stopper::StopContext&) {
    EXPECT_EQ(vm->registers(0).value_or(Registers{}).rip, kRawEntry);
    EXPECT_EQ(peek<uint32_t>(*vm, 0x20'0000), 0U);
    return 0;
  });
  ASSERT_TRUE(stop.has_value());
  vm->stops().release_hold();
  EXPECT_TRUE(await(*vm, [&] { return peek<uint32_t>(*vm, 0x20'0000) != 0; }));
  EXPECT_EQ(vm->state(), VmState::kRunning);
}

TEST_F(Stop, InALoopFromTheFirstInstructionOnLetsTheGuestStart) {
  const auto vm = make(probe(4, "scenarios=io"));
  ASSERT_NE(vm, nullptr);
  std::atomic<bool> enough{false};
  std::thread client([&] {
    while (!enough.load(std::memory_order_acquire)) // pairs with the store below
      EXPECT_TRUE(vm->stops().run([](stopper::StopContext&) { return 0; }).has_value());
  });
  EXPECT_TRUE(vm->start().has_value());
  EXPECT_TRUE(await(*vm, [&] { return cpus_running(*vm) == 4; }));
  enough.store(true, std::memory_order_release);
  client.join();
  EXPECT_EQ(vm->doorbell_counts().lost + vm->doorbell_counts().doubled, 0U);
}

class Storm : public KvmTest, public ::testing::WithParamInterface<uint32_t> {};

TEST_P(Storm, OfStopsFromFourClientsLosesNoAccess) {
  constexpr int kClients = 4;
  constexpr int kStops = 300;
  const uint32_t cpus = GetParam();
  const auto vm = started(probe(cpus, "scenarios=io"));
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(await(*vm, [&] { return cpus_running(*vm) == cpus; }));
  std::vector<std::thread> clients;
  clients.reserve(kClients);
  for (int client = 0; client < kClients; ++client)
    clients.emplace_back([&vm, client] {
      for (int i = 0; i < kStops; ++i) {
        const bool holds = (i + client) % 2 == 0;
        const auto stop =
            holds ? vm->stops().acquire_hold() : vm->stops().run([](stopper::StopContext&) { return 0; });
        ASSERT_TRUE(stop.has_value()) << vm->explain("stop", stop.error()).message();
        if (holds)
          vm->stops().release_hold();
      }
    });
  for (std::thread& client : clients)
    client.join();
  EXPECT_EQ(vm->stops().holds(), 0U);
  const auto stop = vm->stops().run([&](stopper::StopContext&) {
    for (uint32_t cpu = 0; cpu < cpus; ++cpu) {
      const DoorbellCounts counts = vm->doorbell_counts(cpu);
      const probe::CpuResults seen = results(*vm, cpu);
      EXPECT_EQ(counts.lost, 0U);
      EXPECT_EQ(counts.doubled, 0U);
      EXPECT_EQ(seen.io_bad, 0U);
      // The guest notes an access after it was made.
      EXPECT_LE(counts.port_writes - seen.io_port_writes, 1U);
      EXPECT_LE(counts.port_reads - seen.io_port_reads, 1U);
      EXPECT_LE(counts.mmio_writes - seen.io_mmio_writes, 1U);
      EXPECT_LE(counts.mmio_reads - seen.io_mmio_reads, 1U);
    }
    return 0;
  });
  EXPECT_TRUE(stop.has_value());
  for (uint32_t cpu = 0; cpu < cpus; ++cpu) { // and it goes on
    const uint64_t before = results(*vm, cpu).io_mmio_reads;
    EXPECT_TRUE(await(*vm, [&] { return results(*vm, cpu).io_mmio_reads > before; }));
  }
}
INSTANTIATE_TEST_SUITE_P(Vcpus, Storm, ::testing::Values(1, 2, 4));

} // namespace
} // namespace stopvisor::vmm::testing
