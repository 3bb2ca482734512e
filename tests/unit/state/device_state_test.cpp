// SPDX-License-Identifier: Apache-2.0
// A device restored from another one's state answers as that one would have, and refuses what it never writes.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <memory>

#include "guest/probe_abi.h"
#include "tests/unit/virtio/driver.h"
#include "vmm/devices/acpi_power.h"
#include "vmm/devices/cpu_device.h"
#include "vmm/devices/doorbell.h"
#include "vmm/devices/i8042.h"
#include "vmm/devices/power.h"
#include "vmm/devices/pvpanic.h"
#include "vmm/devices/reset_port.h"
#include "vmm/devices/serial16550.h"
#include "vmm/virtio/entropy.h"

namespace stopvisor::vmm {
namespace {

using testing::Driver;
using Payload = std::vector<std::byte>;

Payload saved(const StatefulDevice& device) {
  StateWriter out;
  device.save_state(out);
  return out.take();
}

// "" where it was taken.
std::string restoring(StatefulDevice& device, const Payload& payload) {
  StateReader in(payload);
  device.restore_state(in);
  const char* const why = in.finish();
  return why == nullptr ? "" : why;
}

uint8_t in8(BusDevice& device, uint64_t offset) {
  std::byte value{};
  device.read(offset, {&value, 1});
  return std::to_integer<uint8_t>(value);
}
void out8(BusDevice& device, uint64_t offset, uint8_t value) {
  const std::byte byte{value};
  device.write(offset, {&byte, 1});
}

TEST(SerialState, GoesOnWithInputAndInterrupt) {
  Serial16550 one(nullptr, nullptr);
  out8(one, 2, 0xc1); // FIFOs on, trigger at 14
  out8(one, 1, 0x01); // interrupts of what is received
  out8(one, 7, 0x5a);
  const std::string text = "hello";
  ASSERT_EQ(one.receive(std::as_bytes(std::span(text))), text.size());
  EXPECT_EQ(in8(one, 0), 'h'); // so that the ring does not begin at its first place
  int changes = 0;
  Serial16550 other(nullptr, [&](bool) { ++changes; });
  ASSERT_EQ(restoring(other, saved(one)), "");
  EXPECT_EQ(saved(other), saved(one));
  EXPECT_EQ(changes, 0) << "the line is in the interrupt controller's state";
  EXPECT_EQ(in8(other, 2), 0xcc); // below the trigger: the timeout
  EXPECT_EQ(in8(other, 7), 0x5a);
  for (const char letter : std::string("ello"))
    EXPECT_EQ(in8(other, 0), letter);
  EXPECT_EQ(changes, 1) << "the line falls with the last byte";
}

TEST(SerialState, WithMoreInputThanRoomIsRefused) {
  Serial16550 device(nullptr, nullptr);
  Payload payload = saved(device);
  payload.back() = std::byte{17};
  payload.resize(payload.size() + 17);
  EXPECT_EQ(restoring(device, payload), "more input than there is room for");
}

TEST(KeyboardState, GoesOnInTheMiddleOfAChord) {
  Bus ports;
  I8042 one([](GuestRequest) {}, [](bool) {});
  ASSERT_TRUE(one.attach_to(ports));
  ASSERT_TRUE(one.press_ctrl_alt_del());
  std::byte byte{};
  ASSERT_TRUE(ports.read(0x60, {&byte, 1}));
  Bus other_ports;
  I8042 other([](GuestRequest) {}, [](bool) {});
  ASSERT_TRUE(other.attach_to(other_ports));
  ASSERT_EQ(restoring(other, saved(one)), "");
  EXPECT_EQ(saved(other), saved(one));
  for (int code = 0; code < 8; ++code) {
    std::byte theirs{};
    ASSERT_TRUE(ports.read(0x60, {&byte, 1}));
    ASSERT_TRUE(other_ports.read(0x60, {&theirs, 1}));
    EXPECT_EQ(theirs, byte);
  }
}

TEST(SmallDevicesState, ComesBack) {
  const auto nothing = [](GuestRequest) {};
  const auto pair = [](auto one, auto other, auto change) {
    change(*one);
    EXPECT_EQ(restoring(*other, saved(*one)), "");
    EXPECT_EQ(saved(*other), saved(*one));
  };
  pair(std::make_unique<PowerDevice>(nothing, [] {}), std::make_unique<PowerDevice>(nothing, [] {}),
       [](PowerDevice& device) { device.press(); });
  pair(std::make_unique<AcpiPower>(nothing, [] {}), std::make_unique<AcpiPower>(nothing, [] {}),
       [](AcpiPower& device) { device.press_button(); });
  pair(std::make_unique<PvPanic>(nullptr), std::make_unique<PvPanic>(nullptr),
       [](PvPanic& device) { out8(device, 0, 1); });
  pair(std::make_unique<ResetControlPort>(nothing), std::make_unique<ResetControlPort>(nothing),
       [](ResetControlPort& device) { out8(device, 0, 2); });
  AcpiPower device(nothing, [] {});
  EXPECT_EQ(restoring(device, Payload{std::byte{8}, {}, {}, {}}), "an event that there is not");
}

TEST(CpuDeviceState, TellsOfTheSameVcpusOrIsRefused) {
  CpuDevice one(4, [] {});
  for (uint32_t cpu = 0; cpu < 3; ++cpu)
    one.add(cpu, false);
  one.set_wanted(2, false);
  CpuDevice other(4, [] {});
  for (uint32_t cpu = 0; cpu < 3; ++cpu)
    other.add(cpu, false);
  ASSERT_EQ(restoring(other, saved(one)), "");
  EXPECT_FALSE(other.wanted(2));
  EXPECT_TRUE(other.wanted(1));
  CpuDevice fewer(4, [] {});
  fewer.add(0, false);
  EXPECT_EQ(restoring(fewer, saved(one)), "other vCPUs than this machine's");
  CpuDevice smaller(3, [] {});
  EXPECT_EQ(restoring(smaller, saved(one)), "another number of possible vCPUs than this machine's");
}

// A job that the worker had not taken yet is done by the other's.
TEST(DoorbellState, CountsOnAndDoesTheJobThatWaited) {
  const auto memory = GuestMemory::create(16 << 20, MemoryBacking::kAnonymous);
  ASSERT_TRUE(memory.has_value());
  Bus ports;
  Bus mmio;
  WrittenPages written(memory->slots());
  Doorbell one(*memory, written);
  ASSERT_TRUE(one.attach_to(ports, mmio));
  const auto write = [](Bus& bus, uint64_t offset, uint64_t value) {
    return bus.write(probe::kDoorbellMmioGpa + 0x40UL * 5 + offset, std::as_bytes(std::span(&value, 1)));
  };
  ASSERT_TRUE(write(mmio, probe::kDoorbellMmioWrite, 1));
  ASSERT_TRUE(write(mmio, probe::kDoorbellMmioWrite, 2));
  Bus other_ports;
  Bus other_mmio;
  Doorbell other(*memory, written);
  ASSERT_TRUE(other.attach_to(other_ports, other_mmio));
  ASSERT_EQ(restoring(other, saved(one)), "");
  EXPECT_EQ(other.total(), one.total());
  ASSERT_TRUE(write(other_mmio, probe::kDoorbellMmioWrite, 3));
  EXPECT_EQ(other.total().lost + other.total().doubled, 0U);
  Payload payload = saved(one);
  payload[payload.size() - 4] = std::byte{1}; // one job
  payload.resize(payload.size() + 12);
  payload[payload.size() - 12] = std::byte{5};
  payload[payload.size() - 8] = std::byte{9};
  Doorbell third(*memory, written);
  ASSERT_EQ(restoring(third, payload), "");
  EXPECT_EQ(saved(third), payload);
  // The worker's device needs a worker only to be told of halves of jobs: it is not run here.
}

// ---- virtio -------------------------------------------------------------------------------------------------

TEST(VirtioState, GoesOnWithTheSameRings) {
  for (const uint64_t features : {virtio::kVersion1, virtio::kVersion1 | virtio::kEventIndex}) {
    virtio::Entropy device;
    Driver one(device);
    one.start(features);
    EXPECT_EQ(one.request({}, {16}).written, 16U);
    EXPECT_EQ(one.request({}, {16}).written, 16U);

    virtio::Entropy twin;
    Driver other(twin);
    const auto memory = one.memory.range(Gpa{0}, Driver::kMemoryBytes);
    std::ranges::copy(memory, other.memory.range(Gpa{0}, Driver::kMemoryBytes).begin());
    other.ring.set_available_index(2);
    ASSERT_EQ(restoring(other.mmio, saved(one.mmio)), "");
    EXPECT_EQ(saved(other.mmio), saved(one.mmio));
    EXPECT_EQ(other.interrupts, 0);
    other.mmio.raise_again();
    EXPECT_EQ(other.interrupts, 1) << "nobody has acknowledged the last one";
    other.write(testing::kInterruptAck, 3);
    EXPECT_EQ(other.request({}, {16}).written, 16U);
    EXPECT_EQ(other.request({}, {16}).written, 16U);
    EXPECT_EQ(other.mmio.broken(), "");
    EXPECT_EQ(other.interrupts, features == virtio::kVersion1 ? 3 : 1); // the event index asks for the first only
  }
}

TEST(VirtioState, OfABrokenQueueRests) {
  virtio::Entropy device;
  Driver one(device);
  one.start();
  one.ring.offer(99); // a chain that begins outside of the table
  one.work();
  ASSERT_NE(one.mmio.broken(), "");
  virtio::Entropy twin;
  Driver other(twin);
  ASSERT_EQ(restoring(other.mmio, saved(one.mmio)), "");
  EXPECT_NE(other.mmio.broken(), "");
  EXPECT_FALSE(other.mmio.do_job());
  EXPECT_EQ(saved(other.mmio), saved(one.mmio));
}

TEST(VirtioState, OfAnotherDeviceOrWithOtherFeaturesIsRefused) {
  virtio::Entropy device;
  Driver one(device);
  one.start();
  Payload payload = saved(one.mmio);
  const Payload good = payload;
  payload[0] ^= std::byte{1};
  EXPECT_EQ(restoring(one.mmio, payload), "it is of another device than the one that is there");
  payload = good;
  payload[12] |= std::byte{1}; // the lowest feature bit, which entropy devices do not have
  EXPECT_EQ(restoring(one.mmio, payload), "the guest's driver uses a feature that the device here does not have");
}

} // namespace
} // namespace stopvisor::vmm
