// SPDX-License-Identifier: Apache-2.0
// The registers: negotiation, the status a driver moves through, interrupts, and whatever a driver may get wrong.
#include "vmm/virtio/mmio.h"

#include <atomic>
#include <functional>
#include <semaphore>
#include <string>
#include <thread>

#include <gtest/gtest.h>

#include "tests/unit/virtio/driver.h"

namespace stopvisor::vmm::virtio {
namespace {

using namespace testing; // NOLINT(google-build-using-namespace)

constexpr uint64_t kOwnFeature = 1 << 3;

// Answers each request with its own bytes.
class Echo final : public RequestDevice {
public:
  [[nodiscard]] const std::string& name() const noexcept override { return name_; }
  [[nodiscard]] uint32_t type() const noexcept override { return 42; }
  [[nodiscard]] uint64_t features() const noexcept override { return kOwnFeature; }
  [[nodiscard]] std::span<const uint16_t> queue_sizes() const noexcept override { return sizes_; }
  [[nodiscard]] std::span<const std::byte> config() const noexcept override {
    return std::as_bytes(std::span(config_));
  }
  void start(uint64_t features, Queues queues) noexcept override {
    started_with = features;
    RequestDevice::start(features, queues);
  }
  void reset() noexcept override {
    ++resets;
    RequestDevice::reset();
  }
  uint64_t started_with = 0;
  int resets = 0;
  std::function<void()> in_handle; // a test steps in
  std::binary_semaphore entered{0};
  std::binary_semaphore go_on{0};
  std::atomic<uint64_t> handled{0};

protected:
  [[nodiscard]] uint32_t handle(const Chain& request) noexcept override {
    std::string text(request.readable_bytes(), '\0');
    (void)request.read(0, std::as_writable_bytes(std::span(text)));
    handled.fetch_add(1, std::memory_order_relaxed);
    if (in_handle)
      in_handle();
    return request.write(0, std::as_bytes(std::span(text))) ? static_cast<uint32_t>(text.size()) : 0;
  }

private:
  const std::string name_ = "echo";
  std::array<uint16_t, 2> sizes_{8, 64};
  std::string config_ = "0123456789";
};

class MmioTest : public ::testing::Test {
protected:
  std::string read_bytes(uint64_t offset, size_t length) {
    std::string bytes(length, '\0');
    driver.mmio.read(offset, std::as_writable_bytes(std::span(bytes)));
    return bytes;
  }
  Echo device;
  Driver driver{device};
};

TEST_F(MmioTest, SaysWhatItIs) {
  EXPECT_EQ(read_bytes(kMagic, 4), "virt");
  EXPECT_EQ(driver.read(kVersion), 2U);
  EXPECT_EQ(driver.read(kDeviceId), 42U);
  EXPECT_EQ(driver.read(kStatus), 0U);
  EXPECT_EQ(driver.read(kConfigGeneration), 0U);
  EXPECT_EQ(driver.read(kSharedMemoryLength), UINT32_MAX); // there is none
  EXPECT_EQ(driver.offered(), kOwnFeature | kVersion1 | kIndirectDescriptors | kEventIndex);
  driver.write(kDeviceFeaturesSelect, 2);
  EXPECT_EQ(driver.read(kDeviceFeatures), 0U);
}

TEST_F(MmioTest, ServesRequestsOfADriverThatDidAllRight) {
  driver.start(kVersion1 | kOwnFeature);
  EXPECT_EQ(driver.read(kStatus), kAcknowledge | kDriver | kFeaturesOk | kDriverOk);
  EXPECT_EQ(device.started_with, kVersion1 | kOwnFeature);
  EXPECT_EQ(driver.wakes, 1); // there may have been requests before
  const auto answer = driver.request({"hel", "lo"}, {2, 4});
  EXPECT_EQ(answer.written, 5U);
  EXPECT_EQ(answer.bytes, "hello?");
  EXPECT_EQ(driver.interrupts, 1);
  EXPECT_EQ(driver.read(kInterruptStatus), 1U);
  driver.write(kInterruptAck, 2); // another cause
  EXPECT_EQ(driver.read(kInterruptStatus), 1U);
  driver.write(kInterruptAck, 1);
  EXPECT_EQ(driver.read(kInterruptStatus), 0U);
  EXPECT_EQ(driver.mmio.chains_done(), 1U);
}

TEST_F(MmioTest, WakesItsWorkerWhenItIsNotified) {
  driver.start();
  driver.wakes = 0;
  driver.write(testing::kQueueNotify, 0);
  driver.write(testing::kQueueNotify, 77);
  EXPECT_EQ(driver.wakes, 2);
}

TEST_F(MmioTest, RefusesADriverWithoutVersion1) {
  EXPECT_FALSE(driver.negotiate(kOwnFeature));
  driver.add_status(kDriverOk);
  EXPECT_EQ(driver.read(kStatus) & kDriverOk, 0U);
}

TEST_F(MmioTest, RefusesFeaturesItDoesNotHave) {
  EXPECT_FALSE(driver.negotiate(kVersion1 | 1 << 4));
  EXPECT_FALSE(driver.negotiate(kVersion1 | uint64_t{1} << 40));
  EXPECT_TRUE(driver.negotiate(kVersion1));
}

TEST_F(MmioTest, KeepsToTheFeaturesThatWereAgreedOn) {
  ASSERT_TRUE(driver.negotiate(kVersion1));
  driver.write(kDriverFeaturesSelect, 0);
  driver.write(kDriverFeatures, kOwnFeature);
  driver.add_status(kDriverOk);
  EXPECT_EQ(device.started_with, kVersion1);
}

TEST_F(MmioTest, ClearsNoStatusBitButAllOfThem) {
  driver.start();
  driver.write(kStatus, kAcknowledge);
  EXPECT_EQ(driver.read(kStatus), kAcknowledge | kDriver | kFeaturesOk | kDriverOk);
  driver.write(kStatus, kNeedsReset | 0xffff'ff00); // not the driver's
  EXPECT_EQ(driver.read(kStatus), kAcknowledge | kDriver | kFeaturesOk | kDriverOk);
  driver.write(kStatus, 0);
  EXPECT_EQ(driver.read(kStatus), 0U);
}

TEST_F(MmioTest, ServesNothingBeforeTheDriverIsReadyNorAfterItGaveUp) {
  ASSERT_TRUE(driver.negotiate(kVersion1));
  driver.set_queue(0, driver.ring.layout());
  driver.request({"x"}, {1});
  EXPECT_EQ(device.handled, 0U);
  driver.add_status(kDriverOk);
  driver.work();
  EXPECT_EQ(device.handled, 1U);
  driver.add_status(kFailed);
  driver.request({"x"}, {1});
  EXPECT_EQ(device.handled, 1U);
}

TEST_F(MmioTest, TellsTheSizesOfItsQueues) {
  for (const auto& [queue, size] : {std::pair{0U, 8U}, {1U, 64U}, {2U, 0U}, {UINT32_MAX, 0U}}) {
    driver.write(kQueueSelect, queue);
    EXPECT_EQ(driver.read(kQueueSizeMax), size);
  }
}

TEST_F(MmioTest, LeavesAQueueAloneThatIsReady) {
  driver.start();
  EXPECT_EQ(driver.read(kQueueReady), 1U);
  driver.write(kQueueUsed, 0x7000);
  driver.write(kQueueSize, 2);
  EXPECT_EQ(driver.request({"hello"}, {5}).bytes, "hello");
  driver.write(kQueueReady, 0);
  EXPECT_EQ(driver.read(kQueueReady), 0U);
  EXPECT_EQ(driver.request({"hello"}, {5}).written, 0U);
}

TEST_F(MmioTest, MakesNoQueueReadyThatItDoesNotHave) {
  ASSERT_TRUE(driver.negotiate(kVersion1));
  driver.set_queue(2, driver.ring.layout());
  EXPECT_EQ(driver.read(kQueueReady), 0U);
  driver.add_status(kDriverOk);
  driver.work();
  EXPECT_EQ(driver.read(kStatus) & kNeedsReset, 0U);
}

TEST_F(MmioTest, NeedsAResetWhereAQueueIsBroken) {
  driver.start();
  driver.ring.set_available_index(9);
  driver.work();
  EXPECT_NE(driver.read(kStatus) & kNeedsReset, 0U);
  EXPECT_EQ(driver.read(kInterruptStatus), 2U); // the configuration's, not a queue's
  EXPECT_EQ(driver.interrupts, 1);
  EXPECT_EQ(driver.mmio.broken(), "an available index that is further ahead than the queue is long");
  driver.work(); // quiet
  driver.write(testing::kQueueNotify, 0);
  driver.work();
  EXPECT_EQ(driver.interrupts, 1);
  driver.add_status(0); // the driver cannot clear it
  EXPECT_NE(driver.read(kStatus) & kNeedsReset, 0U);
  driver.ring.set_available_index(0);
  driver.ring.put<uint32_t>(RawRing::kUsed, 0);
  driver.start();
  EXPECT_EQ(driver.mmio.broken(), "");
  EXPECT_EQ(driver.request({"again"}, {5}).bytes, "again");
}

TEST_F(MmioTest, NeedsAResetWhereAQueueCannotBeWhereTheDriverSays) {
  auto wrong = driver.ring.layout();
  wrong.used = Driver::kMemoryBytes;
  ASSERT_TRUE(driver.negotiate(kVersion1));
  driver.set_queue(0, wrong);
  EXPECT_NE(driver.read(kStatus) & kNeedsReset, 0U);
  EXPECT_EQ(driver.interrupts, 0); // 2.1.2: not before DRIVER_OK
  driver.add_status(kDriverOk);
  driver.work();
  EXPECT_EQ(device.handled, 0U);
}

TEST_F(MmioTest, TakesNoQueueOfMorePlacesThanItSaid) {
  auto large = driver.ring.layout();
  for (const uint32_t size : {16U, 0x1'0008U}) { // the second is 8, cut to 16 bits
    ASSERT_TRUE(driver.negotiate(kVersion1));
    driver.write(kQueueSelect, 0);
    driver.write(kQueueSize, size);
    driver.write(kQueueDescriptors, static_cast<uint32_t>(large.descriptors));
    driver.write(kQueueAvailable, static_cast<uint32_t>(large.available));
    driver.write(kQueueUsed, static_cast<uint32_t>(large.used));
    driver.write(kQueueReady, 1);
    EXPECT_NE(driver.read(kStatus) & kNeedsReset, 0U) << size;
  }
}

TEST_F(MmioTest, ForgetsEverythingInAReset) {
  driver.start(kVersion1 | kEventIndex);
  driver.request({"hello"}, {5});
  driver.ring.set_available_index(99);
  driver.work();
  driver.mmio.reset(); // the machine's
  EXPECT_EQ(driver.read(kStatus), 0U);
  EXPECT_EQ(driver.read(kInterruptStatus), 0U);
  EXPECT_EQ(driver.read(kQueueReady), 0U);
  EXPECT_EQ(driver.mmio.broken(), "");
  EXPECT_FALSE(driver.mmio.do_job());
  driver.ring.set_available_index(0);
  driver.ring.put<uint32_t>(RawRing::kUsed, 0);
  driver.start();
  EXPECT_EQ(driver.request({"hello"}, {5}).bytes, "hello");
}

TEST_F(MmioTest, GivesItsConfigurationInPiecesOfAnySize) {
  EXPECT_EQ(read_bytes(kConfig, 1), "0");
  EXPECT_EQ(read_bytes(kConfig + 1, 2), "12");
  EXPECT_EQ(read_bytes(kConfig + 2, 8), "23456789");
  EXPECT_EQ(read_bytes(kConfig + 7, 4), "\xff\xff\xff\xff"); // over its end
  EXPECT_EQ(read_bytes(kConfig + 10, 1), "\xff");
  EXPECT_EQ(read_bytes(0xffc, 4), "\xff\xff\xff\xff");
  driver.write(kConfig, 0x41414141);
  EXPECT_EQ(read_bytes(kConfig, 4), "0123");
}

TEST_F(MmioTest, TellsOfAConfigurationThatChanged) {
  driver.start();
  driver.mmio.config_changed();
  EXPECT_EQ(driver.read(kConfigGeneration), 1U);
  EXPECT_EQ(driver.read(kInterruptStatus), 2U);
  EXPECT_EQ(driver.interrupts, 1);
}

TEST_F(MmioTest, TakesAccessesOfOddSizeForNothing) {
  driver.start();
  for (const size_t length : {1U, 2U, 8U})
    for (const uint64_t offset : {0x0U, 0x70U, 0x60U, 0x44U})
      EXPECT_EQ(read_bytes(offset, length), std::string(length, '\xff'));
  for (uint64_t offset = 1; offset < kConfig; ++offset)
    EXPECT_TRUE(offset % 4 == 0 || driver.read(offset) == UINT32_MAX) << offset;
  const std::array<std::byte, 8> zeros{};
  driver.mmio.write(kStatus, std::span(zeros).first(1)); // would be a reset
  driver.mmio.write(kStatus, std::span(zeros).first(2));
  driver.mmio.write(kStatus, zeros);
  driver.write(kStatus + 1, 0);
  EXPECT_NE(driver.read(kStatus) & kDriverOk, 0U);
  EXPECT_EQ(driver.request({"hello"}, {5}).bytes, "hello");
}

TEST_F(MmioTest, SurvivesAnyWriteToAnyRegister) {
  uint64_t state = 1;
  const auto random = [&] { // a fixed sequence
    state = state * 6364136223846793005 + 1442695040888963407;
    return static_cast<uint32_t>(state >> 33);
  };
  for (int turn = 0; turn < 200'000; ++turn) {
    const uint32_t value = random() % 3 == 0 ? random() : random() % 16;
    driver.write(random() % 0x110 & ~3U, value);
    (void)driver.read(random() % 0x110 & ~3U);
    if (turn % 16 == 0)
      (void)driver.mmio.do_job();
  }
}

// The driver may use its memory for something else as soon as the write is done (Linux does not look at the status
// again).
TEST_F(MmioTest, ADriversResetWaitsForTheEndOfTheRequestThatIsServed) {
  driver.start();
  driver.ring.put_text(Driver::kBuffers, "late");
  driver.ring.describe(0, {Driver::kBuffers, 4, testing::kNext, 1});
  driver.ring.describe(1, {Driver::kBuffers + 64, 4, testing::kWrite, 0});
  driver.ring.offer(0);
  std::atomic<bool> reset{false};
  bool reset_before_the_end = false;
  device.in_handle = [&] {
    device.entered.release();
    device.go_on.acquire();
    reset_before_the_end = reset.load(std::memory_order_acquire); // pairs with the store below
  };
  std::thread worker([&] { (void)driver.mmio.do_job(); });
  device.entered.acquire();
  std::thread vcpu([&] {
    driver.write(kStatus, 0);
    reset.store(true, std::memory_order_release);
  });
  for (int look = 0; look < 5000; ++look) // time for it to go wrong
    std::this_thread::yield();
  device.go_on.release();
  worker.join();
  vcpu.join();
  EXPECT_FALSE(reset_before_the_end);
  EXPECT_EQ(driver.read(kStatus), 0U);
}

} // namespace
} // namespace stopvisor::vmm::virtio
