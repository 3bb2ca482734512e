// SPDX-License-Identifier: Apache-2.0
// ACPI's registers and the panic port, as a guest uses them.
#include "vmm/devices/acpi_power.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "vmm/devices/pvpanic.h"

namespace stopvisor::vmm {
namespace {

template <typename T>
T read(BusDevice& device, uint64_t offset) {
  T value{};
  device.read(offset, std::as_writable_bytes(std::span(&value, 1)));
  return value;
}

template <typename T>
void write(BusDevice& device, uint64_t offset, T value) {
  device.write(offset, std::as_bytes(std::span(&value, 1)));
}

class AcpiPowerTest : public ::testing::Test {
protected:
  std::vector<GuestRequest> requests_;
  unsigned interrupts_ = 0;
  AcpiPower power_{[this](GuestRequest request) { requests_.push_back(request); }, [this] { ++interrupts_; }};
};

TEST_F(AcpiPowerTest, SleepOfTypeFiveSwitchesOff) {
  write(power_, 0, uint8_t{5 << 2 | 0x20});
  EXPECT_EQ(requests_, std::vector{GuestRequest::kPowerOff});
}

TEST_F(AcpiPowerTest, OtherSleepsAndWritesDoNothing) {
  write(power_, 0, uint8_t{5 << 2});        // not enabled
  write(power_, 0, uint8_t{3 << 2 | 0x20}); // S3, which there is not
  write(power_, 0, uint16_t{5 << 2 | 0x20});
  write(power_, 1, uint8_t{0x80}); // the wake status is cleared before each sleep
  write(power_, 2, uint8_t{0x06}); // the reset register of another machine
  write(power_, 3, uint8_t{1});
  write(power_, 4, uint32_t{UINT32_MAX});
  EXPECT_TRUE(requests_.empty());
  EXPECT_EQ(read<uint8_t>(power_, 0), 0);
  EXPECT_EQ(read<uint8_t>(power_, 1), 0);
}

TEST_F(AcpiPowerTest, ResetRegisterResets) {
  write(power_, 2, uint8_t{1});
  EXPECT_EQ(requests_, std::vector{GuestRequest::kReset});
}

TEST_F(AcpiPowerTest, ButtonIsToldOnceAndClearedByTheRead) {
  power_.press_button();
  EXPECT_EQ(interrupts_, 1U);
  EXPECT_EQ(read<uint32_t>(power_, 4), 1U);
  EXPECT_EQ(read<uint32_t>(power_, 4), 0U);
}

TEST_F(AcpiPowerTest, EventsAddUpUntilTheyAreRead) {
  power_.press_button();
  power_.tell_generation();
  EXPECT_EQ(interrupts_, 2U);
  EXPECT_EQ(read<uint32_t>(power_, 4), 3U);
}

TEST_F(AcpiPowerTest, ReadsOfOtherSizesTakeNoEventAway) {
  power_.press_button();
  EXPECT_EQ(read<uint8_t>(power_, 4), 0xff);
  EXPECT_EQ(read<uint16_t>(power_, 4), 0xffff);
  EXPECT_EQ(read<uint16_t>(power_, 6), 0xffff);
  EXPECT_EQ(read<uint32_t>(power_, 4), 1U);
}

TEST_F(AcpiPowerTest, ResetForgetsEvents) {
  power_.press_button();
  power_.reset();
  EXPECT_EQ(read<uint32_t>(power_, 4), 0U);
}

// Two pulses in one another would be one edge, and one event that nobody reads.
TEST(AcpiPowerInterrupt, IsRaisedByOneAtATime) {
  std::atomic<bool> raised{false};
  std::atomic<int> overlaps{0};
  std::atomic<int> pulses{0};
  AcpiPower power([](GuestRequest) {},
                  [&] {
                    if (raised.exchange(true))
                      ++overlaps;
                    std::this_thread::yield();
                    raised.store(false);
                    ++pulses;
                  });
  std::thread other([&] {
    for (int turn = 0; turn < 1000; ++turn)
      power.tell_generation();
  });
  for (int turn = 0; turn < 1000; ++turn)
    power.press_button();
  other.join();
  EXPECT_EQ(overlaps, 0);
  EXPECT_EQ(pulses, 2000);
}

class PvPanicTest : public ::testing::Test {
protected:
  std::vector<PanicEvent> events_;
  PvPanic panic_{[this](PanicEvent event) { events_.push_back(event); }};
};

TEST_F(PvPanicTest, SaysWhichEventsItTakes) {
  EXPECT_EQ(read<uint8_t>(panic_, 0), 3);
  EXPECT_EQ(read<uint32_t>(panic_, 0), UINT32_MAX);
}

TEST_F(PvPanicTest, PanicIsToldOncePerLife) {
  write(panic_, 0, uint8_t{1});
  write(panic_, 0, uint8_t{1});
  EXPECT_EQ(events_, std::vector{PanicEvent::kPanicked});
  EXPECT_TRUE(panic_.panicked());
  panic_.reset();
  EXPECT_FALSE(panic_.panicked());
  write(panic_, 0, uint8_t{2});
  EXPECT_EQ(events_, (std::vector{PanicEvent::kPanicked, PanicEvent::kCrashLoaded}));
  EXPECT_EQ(panic_.panics(), 2U);
}

TEST_F(PvPanicTest, WhatIsNoPanicIsIgnored) {
  write(panic_, 0, uint8_t{0});
  write(panic_, 0, uint8_t{4}); // "shutdown", of later versions
  write(panic_, 0, uint16_t{1});
  EXPECT_TRUE(events_.empty());
  EXPECT_EQ(panic_.panics(), 0U);
}

} // namespace
} // namespace stopvisor::vmm
