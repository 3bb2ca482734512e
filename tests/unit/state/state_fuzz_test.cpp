// SPDX-License-Identifier: Apache-2.0
// Whatever stands in a state, it is taken or refused; and what is taken is saved again as it was.
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <random>

#include "tests/unit/virtio/driver.h"
#include "vmm/devices/acpi_power.h"
#include "vmm/devices/cpu_device.h"
#include "vmm/devices/doorbell.h"
#include "vmm/devices/i8042.h"
#include "vmm/devices/power.h"
#include "vmm/devices/pvpanic.h"
#include "vmm/devices/reset_port.h"
#include "vmm/devices/serial16550.h"
#include "vmm/state/vcpu_values.h"
#include "vmm/state/vm_values.h"
#include "vmm/virtio/entropy.h"

namespace stopvisor::vmm {
namespace {

using Payload = std::vector<std::byte>;

Payload saved(const StatefulDevice& device) {
  StateWriter out;
  device.save_state(out);
  return out.take();
}

class StateFuzz : public ::testing::Test {
protected:
  // Cuts, lengthens and changes it.
  Payload mangled(Payload payload) {
    for (auto changes = random_() % 4; changes != 0; --changes)
      switch (random_() % 4) {
      case 0:
        payload.resize(random_() % (payload.size() + 1));
        break;
      case 1:
        payload.resize(payload.size() + random_() % 40, static_cast<std::byte>(random_()));
        break;
      default:
        if (!payload.empty())
          payload[random_() % payload.size()] =
              static_cast<std::byte>(random_() % 3 == 0 ? random_() : random_() % 4);
      }
    return payload;
  }

  // `make` makes a device; each is restored once, as the VMM does.
  void fuzz(const std::function<std::unique_ptr<StatefulDevice>()>& make, int turns) {
    const Payload good = saved(*make());
    int taken = 0;
    for (int turn = 0; turn < turns; ++turn) {
      const Payload payload = mangled(good);
      const auto device = make();
      StateReader in(payload);
      device->restore_state(in);
      if (in.finish() != nullptr)
        continue;
      ++taken;
      EXPECT_EQ(saved(*device), payload);
    }
    EXPECT_GT(taken, 0);
    EXPECT_LT(taken, turns);
  }

  std::mt19937 random_{7}; // NOLINT(bugprone-random-generator-seed): the same in each run
};

TEST_F(StateFuzz, NoDeviceTakesWhatItWouldNotSave) {
  const auto nothing = [](GuestRequest) {};
  const auto memory = GuestMemory::create(1 << 20, MemoryBacking::kAnonymous);
  ASSERT_TRUE(memory.has_value());
  WrittenPages written(memory->slots());
  constexpr int kTurns = 20'000;
  fuzz([] { return std::make_unique<Serial16550>(nullptr, nullptr); }, kTurns);
  fuzz([&] { return std::make_unique<I8042>(nothing, nullptr); }, kTurns);
  fuzz([&] { return std::make_unique<PowerDevice>(nothing, [] {}); }, kTurns);
  fuzz([&] { return std::make_unique<AcpiPower>(nothing, [] {}); }, kTurns);
  fuzz([] { return std::make_unique<PvPanic>(nullptr); }, kTurns);
  fuzz([&] { return std::make_unique<ResetControlPort>(nothing); }, kTurns);
  fuzz([] { return std::make_unique<CpuDevice>(5, [] {}); }, kTurns);
  fuzz([&] { return std::make_unique<Doorbell>(*memory, written); }, kTurns / 10);
}

TEST_F(StateFuzz, NoVirtioDeviceIsHarmedByItsState) {
  virtio::Entropy device;
  testing::Driver good(device);
  good.start();
  (void)good.request({}, {16});
  const Payload payload = saved(good.mmio);
  for (int turn = 0; turn < 20'000; ++turn) {
    const Payload bad = mangled(payload);
    virtio::Entropy twin;
    virtio::Mmio mmio(twin, {good.memory, good.written, [] {}, [] {}});
    StateReader in(bad);
    mmio.restore_state(in);
    (void)in.finish();
    for (int job = 0; job < 4 && mmio.do_job(); ++job) {
    }
    (void)saved(mmio);
  }
}

TEST_F(StateFuzz, NoVcpuIsDecodedIntoAnythingElse) {
  VcpuValues values;
  values.cpuid.resize(3);
  values.msrs.resize(3);
  values.xcrs.nr_xcrs = 1;
  values.xsave.resize(4096);
  std::vector<StateSection> good;
  encode_vcpu(values, 0, good);
  encode_controllers({}, good);
  encode_clock({}, good);
  int taken = 0;
  for (int turn = 0; turn < 20'000; ++turn) {
    std::vector<StateSection> sections = good;
    StateSection& victim = sections[random_() % sections.size()];
    victim.payload = mangled(victim.payload);
    auto from = StateSections::index(sections);
    ASSERT_TRUE(from.has_value());
    const auto vcpu = decode_vcpu(*from, 0);
    const auto controllers = decode_controllers(*from);
    const auto clock = decode_clock(*from);
    if (!vcpu || !controllers || !clock)
      continue;
    ++taken;
    std::vector<StateSection> again;
    encode_vcpu(*vcpu, 0, again);
    encode_controllers(*controllers, again);
    encode_clock(*clock, again);
    ASSERT_EQ(again, sections);
  }
  EXPECT_GT(taken, 0);
}

} // namespace
} // namespace stopvisor::vmm
