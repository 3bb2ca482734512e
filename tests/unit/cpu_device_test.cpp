// SPDX-License-Identifier: Apache-2.0
// The CPU device: its registers as guest/probe_abi.h has them, and guests that do not stick to it.
#include "vmm/devices/cpu_device.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <future>

#include "guest/probe_abi.h"

namespace stopvisor::vmm {
namespace {

using std::chrono::steady_clock;

constexpr uint32_t kPossible = 4;
constexpr uint32_t kThere = probe::kCpuPresent | probe::kCpuWanted;

// vCPUs 0 and 1 exist.
class CpuDeviceTest : public ::testing::Test {
protected:
  CpuDeviceTest() {
    EXPECT_TRUE(device.attach_to(ports));
    device.add(0, false);
    device.add(1, false);
  }

  uint32_t read(uint64_t port) const {
    std::array<std::byte, 4> data{};
    ports.read(port, data);
    uint32_t value = 0;
    std::memcpy(&value, data.data(), sizeof value);
    return value;
  }
  uint32_t register_of(uint32_t cpu) const { return read(probe::kCpuPortBase + 4 * cpu); }
  void write(uint64_t port, uint32_t value, size_t size = 4) const {
    std::array<std::byte, 4> data{};
    std::memcpy(data.data(), &value, sizeof value);
    ports.write(port, std::span(data).first(size));
  }
  void say_gone(uint32_t cpu) const { write(probe::kCpuPortBase + 4 * cpu, probe::kCpuGone); }
  CpuDevice::Answer answer_of(uint32_t cpu) { return device.await_gone(cpu, steady_clock::time_point::min()); }

  int pulses = 0;
  CpuDevice device{kPossible, [this] { ++pulses; }};
  Bus ports;
};

using Answer = CpuDevice::Answer;

TEST_F(CpuDeviceTest, TellsItsSignatureAndHowManyThereMayBe) {
  EXPECT_EQ(read(probe::kCpuSignaturePort), probe::kCpuSignature);
  EXPECT_EQ(read(probe::kCpuPossiblePort), kPossible);
  write(probe::kCpuSignaturePort, 0);
  EXPECT_EQ(read(probe::kCpuSignaturePort), probe::kCpuSignature);
}

TEST_F(CpuDeviceTest, TellsWhichVcpusExistAndAreWanted) {
  EXPECT_EQ(register_of(0), kThere);
  EXPECT_EQ(register_of(2), 0U);
  EXPECT_EQ(pulses, 0); // nobody is told of vCPUs the machine was made with
  device.add(2, true);
  EXPECT_EQ(register_of(2), kThere);
  EXPECT_EQ(pulses, 1);
  device.set_wanted(2, false);
  EXPECT_EQ(register_of(2), probe::kCpuPresent);
  EXPECT_EQ(pulses, 2);
}

TEST_F(CpuDeviceTest, SaysWhatItIsToldOnlyWhereItWasAsked) {
  say_gone(1);
  device.set_wanted(1, false);
  EXPECT_EQ(answer_of(1), Answer::kNone); // said before it was asked
  say_gone(1);
  EXPECT_EQ(answer_of(1), Answer::kGone);
  device.set_wanted(1, true);
  device.set_wanted(1, false);
  EXPECT_EQ(answer_of(1), Answer::kNone); // said when it was asked last time
}

TEST_F(CpuDeviceTest, TakesNoHarmFromOddAccesses) {
  device.set_wanted(1, false);
  say_gone(0);
  say_gone(2);
  say_gone(3);
  say_gone(kPossible); // no register there
  for (const size_t size : {1, 2})
    write(probe::kCpuPortBase + 4, probe::kCpuGone, size);
  for (const uint64_t off : {1, 2, 3})
    write(probe::kCpuPortBase + 4 + off, probe::kCpuGone, 1);
  for (const uint32_t value : {0U, 2U, 3U, ~0U})
    write(probe::kCpuPortBase + 4, value);
  EXPECT_EQ(answer_of(1), Answer::kNone);
  EXPECT_EQ(register_of(0), kThere);
  EXPECT_EQ(register_of(1), probe::kCpuPresent);
  EXPECT_EQ(register_of(2), 0U);
  EXPECT_EQ(register_of(kPossible), ~0U);
  EXPECT_EQ(read(probe::kCpuPortBase + 2), ~0U);
  EXPECT_EQ(read(probe::kCpuSignaturePort + 2), ~0U);
}

TEST_F(CpuDeviceTest, WakesWhoWaitsForTheGuest) {
  device.set_wanted(1, false);
  auto waits =
      std::async(std::launch::async, [&] { return device.await_gone(1, steady_clock::time_point::max()); });
  say_gone(1);
  EXPECT_EQ(waits.get(), Answer::kGone);
}

TEST_F(CpuDeviceTest, WakesWhoWaitsWhenItIsClosed) {
  device.set_wanted(1, false);
  auto waits =
      std::async(std::launch::async, [&] { return device.await_gone(1, steady_clock::time_point::max()); });
  device.close();
  EXPECT_EQ(waits.get(), Answer::kClosed);
  EXPECT_EQ(answer_of(1), Answer::kClosed);
}

TEST_F(CpuDeviceTest, TakesAResetForGivingUpWhatIsNotWanted) {
  device.set_wanted(1, false);
  ports.reset_devices();
  EXPECT_EQ(answer_of(1), Answer::kGone);
  EXPECT_EQ(answer_of(0), Answer::kNone);
  EXPECT_EQ(register_of(1), probe::kCpuPresent); // stays as the host wants it
  EXPECT_EQ(register_of(0), kThere);
}

} // namespace
} // namespace stopvisor::vmm
