// SPDX-License-Identifier: Apache-2.0
// The keyboard controller and its keyboard, as a driver meets them.
#include "vmm/devices/i8042.h"

#include <gtest/gtest.h>

#include <array>
#include <vector>

namespace stopvisor::vmm {
namespace {

using Bytes = std::vector<uint8_t>;

class KeyboardController : public ::testing::Test {
protected:
  void SetUp() override { ASSERT_TRUE(chip_.attach_to(ports_)); }
  void data(uint8_t value) { out(0x60, value); }
  void command(uint8_t value) { out(0x64, value); }
  void mode(uint8_t value) {
    command(0x60);
    data(value);
  }
  uint8_t status() { return in(0x64); }
  // All the guest can fetch.
  Bytes fetched() {
    Bytes all;
    while ((status() & 0x01) != 0)
      all.push_back(in(0x60));
    return all;
  }
  uint8_t in(uint16_t port) {
    std::array<std::byte, 1> value{};
    EXPECT_TRUE(ports_.read(port, value));
    return std::to_integer<uint8_t>(value[0]);
  }
  void out(uint16_t port, uint8_t value) {
    const std::array<std::byte, 1> bytes{std::byte{value}};
    EXPECT_TRUE(ports_.write(port, bytes));
  }

  int resets_ = 0;
  int interrupts_ = 0; // rising edges
  bool line_ = false;
  I8042 chip_{[this](GuestRequest request) { resets_ += request == GuestRequest::kReset ? 1 : 0; },
              [this](bool level) {
                EXPECT_NE(level, line_);
                line_ = level;
                interrupts_ += level ? 1 : 0;
              }};
  Bus ports_;
};

// Linux waits for the input buffer (bit 1) to be empty, and warns where bit 4 says that the keyboard is locked.
TEST_F(KeyboardController, IsIdleAndUnlockedAtTheStart) {
  EXPECT_EQ(status(), 0x14);
  EXPECT_FALSE(line_);
}

TEST_F(KeyboardController, ResetsByItsPulseOnly) {
  command(0xff); // pulses nothing
  EXPECT_EQ(resets_, 0);
  command(0xfe);
  EXPECT_EQ(resets_, 1);
  command(0xd1); // the output port: the same line
  data(0x03);
  EXPECT_EQ(resets_, 1);
  command(0xd1);
  data(0x02);
  EXPECT_EQ(resets_, 2);
}

TEST_F(KeyboardController, AnswersItsTestsAndKeepsItsMode) {
  command(0xaa);
  EXPECT_EQ(fetched(), Bytes{0x55});
  command(0xab);
  EXPECT_EQ(fetched(), Bytes{0x00});
  mode(0x74);
  command(0x20);
  EXPECT_EQ(fetched(), Bytes{0x74});
  command(0xae);
  command(0xa8);
  command(0x20);
  EXPECT_EQ(fetched(), Bytes{0x44});
  command(0xad);
  command(0xa7);
  command(0x20);
  EXPECT_EQ(fetched(), Bytes{0x74});
  command(0xd2); // the driver's way to test its interrupt
  data(0x5a);
  EXPECT_EQ(fetched(), Bytes{0x5a});
}

// The loop test's byte goes to the keyboard, as in an AT: what comes back is not from a mouse (bit 5), nor its
// byte.
TEST_F(KeyboardController, TellsWhoLooksForAMouseThatThereIsNone) {
  command(0xd3);
  data(0x5a);
  EXPECT_EQ(status() & 0x21, 0x01);
  EXPECT_EQ(fetched(), Bytes{0xfe});
  command(0xa9);
  EXPECT_EQ(fetched(), Bytes{0x02});
}

TEST_F(KeyboardController, InterruptsOnceAByteWhereItsModeSaysSo) {
  data(0xf2);
  EXPECT_EQ(fetched(), (Bytes{0xfa, 0xab, 0x41}));
  EXPECT_EQ(interrupts_, 3);
  EXPECT_FALSE(line_);
  mode(0x64);
  data(0xee);
  EXPECT_EQ(interrupts_, 3);
  mode(0x65); // what is there already interrupts
  EXPECT_EQ(interrupts_, 4);
  EXPECT_EQ(fetched(), Bytes{0xee});
}

TEST_F(KeyboardController, KeyboardAnswersWhatADriverAsks) {
  const auto ask = [this](uint8_t byte) {
    data(byte);
    return fetched();
  };
  EXPECT_EQ(ask(0xff), (Bytes{0xfa, 0xaa}));
  EXPECT_EQ(ask(0xed), Bytes{0xfa});
  EXPECT_EQ(ask(0x07), Bytes{0xfa});
  EXPECT_EQ(ask(0xf3), Bytes{0xfa});
  EXPECT_EQ(ask(0xf4), Bytes{0xfa}); // a command in place of the parameter
  EXPECT_EQ(ask(0xf0), Bytes{0xfa});
  EXPECT_EQ(ask(0x00), (Bytes{0xfa, 0x41})); // set 2, translated
  EXPECT_EQ(ask(0xf0), Bytes{0xfa});
  EXPECT_EQ(ask(0x03), Bytes{0xfe}); // no such set
  EXPECT_EQ(ask(0xfe), Bytes{0xfe}); // again
  EXPECT_EQ(ask(0x12), Bytes{0xfe}); // no such command
  mode(0x05);                        // not translated
  EXPECT_EQ(ask(0xf2), (Bytes{0xfa, 0xab, 0x83}));
}

TEST_F(KeyboardController, ChordIsMadeAndBrokenInSet1WhereTranslated) {
  ASSERT_TRUE(chip_.press_ctrl_alt_del());
  EXPECT_EQ(fetched(), (Bytes{0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d}));
  EXPECT_EQ(interrupts_, 8);
  EXPECT_EQ(chip_.chords(), 1u);
}

TEST_F(KeyboardController, ChordIsMadeAndBrokenInSet2WhereNot) {
  mode(0x05);
  ASSERT_TRUE(chip_.press_ctrl_alt_del());
  EXPECT_EQ(fetched(), (Bytes{0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14}));
}

TEST_F(KeyboardController, ChordIsRefusedWhereNobodyReads) {
  EXPECT_TRUE(chip_.press_ctrl_alt_del());
  EXPECT_FALSE(chip_.press_ctrl_alt_del()); // the first was not fetched
  EXPECT_EQ(fetched().size(), 8u);
  data(0xf5); // keys off
  EXPECT_EQ(fetched(), Bytes{0xfa});
  EXPECT_FALSE(chip_.press_ctrl_alt_del());
  data(0xf4);
  EXPECT_EQ(fetched(), Bytes{0xfa});
  EXPECT_TRUE(chip_.press_ctrl_alt_del());
  EXPECT_EQ(fetched().size(), 8u);
  command(0xad); // the whole keyboard
  EXPECT_FALSE(chip_.press_ctrl_alt_del());
  EXPECT_EQ(chip_.chords(), 2u);
}

TEST_F(KeyboardController, AnswersComeBeforeKeys) {
  command(0xad);
  data(0xee); // turns the keyboard on again
  EXPECT_EQ(status() & 0x01, 0x01);
  ASSERT_TRUE(chip_.press_ctrl_alt_del());
  command(0x20);
  EXPECT_EQ(in(0x60), 0xee);
  EXPECT_EQ(in(0x60), 0x65);
  EXPECT_EQ(in(0x60), 0x1d);
}

TEST_F(KeyboardController, ForgetsEverythingAtAReset) {
  ASSERT_TRUE(chip_.press_ctrl_alt_del());
  mode(0x00);
  ports_.reset_devices();
  EXPECT_EQ(status(), 0x14);
  EXPECT_FALSE(line_);
  command(0x20);
  EXPECT_EQ(fetched(), Bytes{0x65});
}

TEST_F(KeyboardController, NoRowOfBytesBreaksIt) {
  uint32_t state = 12345;
  for (int i = 0; i < 200'000; ++i) {
    state = state * 1664525 + 1013904223;
    const auto value = static_cast<uint8_t>(state >> 24);
    switch ((state >> 8) % 4) {
    case 0:
      data(value);
      break;
    case 1:
      command(value);
      break;
    case 2:
      (void)in(0x60);
      break;
    default:
      (void)chip_.press_ctrl_alt_del();
    }
  }
  ports_.reset_devices();
  EXPECT_EQ(status(), 0x14);
}

} // namespace
} // namespace stopvisor::vmm
