// SPDX-License-Identifier: Apache-2.0
#include "vmm/virtio/entropy.h"

#include <algorithm>
#include <string>

#include <gtest/gtest.h>

#include "tests/unit/virtio/driver.h"

namespace stopvisor::vmm::virtio {
namespace {

using testing::Driver;

TEST(Entropy, FillsWhatItIsGiven) {
  Entropy device;
  Driver driver(device);
  driver.start();
  const auto one = driver.request({}, {64, 100});
  EXPECT_EQ(one.written, 164U);
  EXPECT_EQ(one.bytes.size(), 164U);
  EXPECT_LT(std::ranges::count(one.bytes, '?'), 20); // it was all '?'
  EXPECT_NE(driver.request({}, {64, 100}).bytes, one.bytes);
}

TEST(Entropy, FillsNoMoreInOneGoThanAStopMayWaitFor) {
  Entropy device;
  Driver driver(device);
  driver.start();
  const auto answer = driver.request({}, {60'000, 60'000});
  EXPECT_EQ(answer.written, 65'536U);
  EXPECT_EQ(answer.bytes.substr(65'536), std::string(120'000 - 65'536, '?'));
}

TEST(Entropy, HasNothingForARequestWithoutRoom) {
  Entropy device;
  Driver driver(device);
  driver.start();
  EXPECT_EQ(driver.request({"please"}, {}).written, 0U);
  EXPECT_EQ(driver.mmio.broken(), "");
  EXPECT_EQ(driver.request({"please"}, {4}).written, 4U);
}

} // namespace
} // namespace stopvisor::vmm::virtio
