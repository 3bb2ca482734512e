// SPDX-License-Identifier: Apache-2.0
// A virtio device between a guest and its worker on the real KVM: notices by ioeventfd, and a queue that is at rest
// in every stop. The guest is a driver of a few instructions (entropy_guest.h), of a device that fills guest memory
// by itself.
#include <array>
#include <chrono>

#include "tests/kvm/entropy_guest.h"
#include "tests/kvm/kvm_fixture.h"
#include "tests/kvm/raw_guest.h"
#include "tests/kvm/snare.h"

namespace stopvisor::vmm::testing {
namespace {

class Virtio : public KvmTest {
protected:
  static uint16_t asked(const Vm& vm) { return peek<uint16_t>(vm, kAvailable + 2); }
  static uint16_t answered(const Vm& vm) { return peek<uint16_t>(vm, kUsed + 2); }
  static void put_ring(const Vm& vm) { put_entropy_ring(vm.memory()); }
  static DeviceStatus status(const Vm& vm) { return vm.device_status().at(0); }
  // The first and last bytes of all buffers, and the ring: what the worker writes.
  static std::array<uint64_t, 2 * kSize + 1> written(const Vm& vm) {
    std::array<uint64_t, 2 * kSize + 1> words{};
    for (uint16_t place = 0; place < kSize; ++place) {
      words[size_t{2} * place] = peek<uint64_t>(vm, kBuffers + uint64_t{kBufferBytes} * place);
      words[size_t{2} * place + 1] = peek<uint64_t>(vm, kBuffers + uint64_t{kBufferBytes} * (place + 1) - 8);
    }
    words[size_t{2} * kSize] = answered(vm);
    return words;
  }
};

// Stops at any moment. One that comes between a request and its answer is luck, as the worker finishes what it is
// at: the test below makes that moment.
TEST_F(Virtio, QueueIsAtRestUnderEveryStop) {
  const RawKernel kernel(entropy_guest());
  const auto vm = make(raw(kernel.path()));
  ASSERT_NE(vm, nullptr);
  put_ring(*vm);
  ASSERT_TRUE(vm->start().has_value());
  constexpr int kStops = 2000;
  uint16_t last = 0;
  for (int turn = 0; turn < kStops; ++turn) {
    ASSERT_TRUE(await(*vm, [&] { return answered(*vm) != last; })); // it lives, and no notice was lost
    const auto stop = vm->stops().run([&](stopper::StopContext&) {
      const auto first = written(*vm);
      const auto open = static_cast<uint16_t>(asked(*vm) - answered(*vm));
      EXPECT_LE(open, 1) << "at stop " << turn; // neither lost nor answered twice
      EXPECT_EQ(written(*vm), first) << "at stop " << turn;
      // Where a request is open, the worker would be at it: long enough to be seen.
      for (int look = 0; open != 0 && look < 3000; ++look)
        if (answered(*vm) != first.back())
          break;
      EXPECT_EQ(written(*vm), first) << "at stop " << turn;
      last = answered(*vm);
      return 0;
    });
    ASSERT_TRUE(stop.has_value()) << vm->explain("stop", stop.error()).message();
    ASSERT_FALSE(HasFailure());
  }
  EXPECT_EQ(status(*vm).broken, "");
  EXPECT_TRUE(status(*vm).driven);
  EXPECT_EQ(static_cast<uint16_t>(status(*vm).requests - answered(*vm)), 0);
}

TEST_F(Virtio, RequestThatComesUnderAStopWaitsForItsEnd) {
  const RawKernel kernel(entropy_guest());
  Snare snare;
  const auto vm = make(raw(kernel.path()));
  ASSERT_NE(vm, nullptr);
  put_ring(*vm);
  vm->use_hooks(&snare);
  const stopper::CpuId worker = vm->stop_machine().first_worker() + 1;
  ASSERT_EQ(vm->worker_status().at(1).name, "entropy");
  snare.arm(VcpuPoint::kBeforeSleep, worker); // the worker is at rest
  ASSERT_TRUE(vm->start().has_value());
  snare.caught.acquire();
  ASSERT_TRUE(await(*vm, [&] { return asked(*vm) == 1; }));
  const auto stop = vm->stops().run([&](stopper::StopContext&) {
    const auto first = written(*vm);
    snare.let_go.release(); // it finds the notice, and rises
    for (int look = 0; look < 20'000; ++look) {
      if (written(*vm) != first)
        return 1;
      std::this_thread::yield();
    }
    return 0;
  });
  ASSERT_TRUE(stop.has_value());
  EXPECT_EQ(stop->result, 0);
  EXPECT_TRUE(await(*vm, [&] { return answered(*vm) > 100; }));
}

TEST_F(Virtio, DeviceBeginsAnewWithTheGuest) {
  const RawKernel kernel(entropy_guest());
  const auto vm = make(raw(kernel.path()));
  ASSERT_NE(vm, nullptr);
  put_ring(*vm);
  ASSERT_TRUE(vm->start().has_value());
  for (uint64_t round = 1; round <= 20; ++round) {
    ASSERT_TRUE(await(*vm, [&] { return answered(*vm) > 20; }));
    poke<uint32_t>(*vm, kReset, 1);
    ASSERT_TRUE(await(*vm, [&] { return vm->resets() == round; }));
  }
  ASSERT_TRUE(await(*vm, [&] { return answered(*vm) > 20; }));
  EXPECT_EQ(status(*vm).broken, "");
}

TEST_F(Virtio, BrokenQueueIsReportedAndTheGuestGoesOn) {
  const RawKernel kernel(entropy_guest());
  const auto vm = make(raw(kernel.path()));
  ASSERT_NE(vm, nullptr);
  put_ring(*vm);
  poke<uint16_t>(*vm, kAvailable + 10, 0xffff); // the fourth chain begins nowhere
  ASSERT_TRUE(vm->start().has_value());
  ASSERT_TRUE(await(*vm, [&] { return !status(*vm).broken.empty(); }));
  EXPECT_EQ(status(*vm).broken, "a chain that begins outside of the table");
  EXPECT_EQ(answered(*vm), 3);
  EXPECT_EQ(asked(*vm), 4);
  const auto before = vm->vcpu_status(0).exits;
  const auto stop = vm->stops().run([](stopper::StopContext&) { return 0; });
  EXPECT_TRUE(stop.has_value());
  EXPECT_TRUE(await(*vm, [&] { return vm->vcpu_status(0).exits > before; }));
  poke<uint32_t>(*vm, kReset, 1);
  poke<uint16_t>(*vm, kUsed + 2, 4); // lets the guest go on to its reset, which mends all
  ASSERT_TRUE(await(*vm, [&] { return vm->resets() == 1 && answered(*vm) > 20; }));
  EXPECT_EQ(status(*vm).broken, "");
}

} // namespace
} // namespace stopvisor::vmm::testing
