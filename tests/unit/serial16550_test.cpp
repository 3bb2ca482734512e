// SPDX-License-Identifier: Apache-2.0
// The serial port as a driver sees it: registers, FIFO, interrupts, loopback.
#include "vmm/devices/serial16550.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace stopvisor::vmm {
namespace {

class TextSink final : public ByteSink {
public:
  void put(std::byte byte) noexcept override { text.push_back(static_cast<char>(byte)); }
  std::string text;
};

class Serial : public ::testing::Test {
protected:
  uint8_t in(uint64_t port) {
    std::byte value{};
    uart_.read(port, std::span(&value, 1));
    return std::to_integer<uint8_t>(value);
  }
  void out(uint64_t port, int value) {
    const auto byte = static_cast<std::byte>(value);
    uart_.write(port, std::span(&byte, 1));
  }
  size_t receive(const std::string& text) { return uart_.receive(std::as_bytes(std::span(text))); }
  void enable_fifo(int trigger = 0) { out(2, 0x01 | trigger); }
  [[nodiscard]] bool line() const { return !levels_.empty() && levels_.back(); }

  TextSink sink_;
  std::vector<bool> levels_;
  Serial16550 uart_{&sink_, [this](bool level) { levels_.push_back(level); }};
};

TEST_F(Serial, BytesWrittenReachTheSink) {
  for (const char c : std::string("hello"))
    out(0, c);
  EXPECT_EQ(sink_.text, "hello");
  EXPECT_EQ(in(5), 0x60); // transmitter empty, no data
}

TEST_F(Serial, PortWithoutASinkDiscards) {
  Serial16550 uart(nullptr, {});
  const std::byte byte{'x'};
  uart.write(0, std::span(&byte, 1));
}

TEST_F(Serial, DivisorHidesDataAndInterruptEnable) {
  out(1, 0x05);
  out(3, 0x83);
  out(0, 0x34);
  out(1, 0x12);
  EXPECT_EQ(in(0), 0x34);
  EXPECT_EQ(in(1), 0x12);
  out(3, 0x03);
  EXPECT_EQ(in(1), 0x05);
  EXPECT_EQ(sink_.text, "");
}

TEST_F(Serial, ScratchKeepsItsValueAndReadOnlyRegistersTheirs) {
  out(7, 0xa5);
  out(5, 0xff);
  out(6, 0xff);
  EXPECT_EQ(in(7), 0xa5);
  EXPECT_EQ(in(5), 0x60);
  EXPECT_EQ(in(6), 0xb0);
}

TEST_F(Serial, InterruptEnableHasFourBits) {
  out(1, 0xff);
  EXPECT_EQ(in(1), 0x0f);
}

TEST_F(Serial, WideAccessGoesToThePortsInTurn) {
  const std::array<std::byte, 2> bytes{std::byte{'a'}, std::byte{0x01}};
  uart_.write(0, bytes);
  EXPECT_EQ(sink_.text, "a");
  EXPECT_EQ(in(1), 0x01);
  std::array<std::byte, 4> read{};
  uart_.read(6, read);
  EXPECT_EQ(read, (std::array{std::byte{0xb0}, std::byte{0}, std::byte{0xff}, std::byte{0xff}}));
}

TEST_F(Serial, InputComesInOrder) {
  enable_fifo();
  EXPECT_EQ(receive("abc"), 3u);
  EXPECT_EQ(in(5), 0x61);
  EXPECT_EQ(in(0), 'a');
  EXPECT_EQ(in(0), 'b');
  EXPECT_EQ(in(0), 'c');
  EXPECT_EQ(in(5), 0x60);
  EXPECT_EQ(in(0), 0);
}

TEST_F(Serial, InputIsBoundedByTheFifo) {
  EXPECT_EQ(receive("ab"), 1u); // FIFOs off
  enable_fifo();
  EXPECT_EQ(receive("0123456789abcdefghij"), 16u);
}

TEST_F(Serial, RoomIsToldOnceItIsThere) {
  int rooms = 0;
  uart_.on_room([&] { ++rooms; });
  enable_fifo();
  EXPECT_EQ(receive("0123456789abcdefghij"), 16u);
  for (int i = 0; i < 15; ++i)
    (void)in(0);
  EXPECT_EQ(rooms, 0);
  (void)in(0);
  EXPECT_EQ(rooms, 1);
  EXPECT_EQ(receive("g"), 1u);
  (void)in(0);
  EXPECT_EQ(rooms, 1); // nobody waited
}

// Who could not give everything is told, though another could in between.
TEST_F(Serial, RoomIsToldToAllWhoWaitForIt) {
  int one = 0, other = 0;
  const auto listener = uart_.on_room([&] { ++one; });
  uart_.on_room([&] { ++other; });
  enable_fifo();
  EXPECT_EQ(receive("0123456789abcdefghij"), 16u);
  (void)in(0);
  EXPECT_EQ(receive("g"), 1u);
  for (int i = 0; i < 16; ++i)
    (void)in(0);
  EXPECT_EQ(one, 1);
  EXPECT_EQ(other, 1);
  uart_.off_room(listener);
  EXPECT_EQ(receive("0123456789abcdefghij"), 16u);
  for (int i = 0; i < 16; ++i)
    (void)in(0);
  EXPECT_EQ(one, 1);
  EXPECT_EQ(other, 2);
}

TEST_F(Serial, ClearingTheFifoMakesRoom) {
  int rooms = 0;
  uart_.on_room([&] { ++rooms; });
  enable_fifo();
  (void)receive("0123456789abcdefghij");
  out(2, 0x03);
  EXPECT_EQ(rooms, 1);
  EXPECT_EQ(in(5), 0x60);
}

TEST_F(Serial, ReceivedDataInterruptsUntilItIsRead) {
  out(1, 0x01);
  EXPECT_FALSE(line());
  (void)receive("a");
  EXPECT_TRUE(line());
  EXPECT_EQ(in(2), 0x04);
  EXPECT_TRUE(line());
  (void)in(0);
  EXPECT_FALSE(line());
  EXPECT_EQ(in(2), 0x01);
}

TEST_F(Serial, InputBelowTheTriggerIsATimeout) {
  enable_fifo(0x80); // 8 bytes
  out(1, 0x01);
  (void)receive("abcdefg");
  EXPECT_EQ(in(2), 0xcc);
  (void)receive("h");
  EXPECT_EQ(in(2), 0xc4);
}

TEST_F(Serial, EnablingTheTransmitInterruptRaisesItAndReadingIirTakesItBack) {
  out(1, 0x02);
  EXPECT_TRUE(line());
  EXPECT_EQ(in(2), 0x02);
  EXPECT_FALSE(line());
  EXPECT_EQ(in(2), 0x01);
  out(1, 0x00);
  out(1, 0x02); // Linux probes for chips that miss this
  EXPECT_TRUE(line());
}

TEST_F(Serial, EachByteSentIsAnEdge) {
  out(1, 0x02);
  levels_.clear();
  out(0, 'a'); // without reading IIR
  EXPECT_EQ(levels_, (std::vector<bool>{false, true}));
  (void)in(2);
  levels_.clear();
  out(0, 'b');
  EXPECT_EQ(levels_, (std::vector<bool>{true}));
}

TEST_F(Serial, ReceivedDataGoesBeforeTheTransmitInterrupt) {
  out(1, 0x03);
  (void)receive("a");
  EXPECT_EQ(in(2), 0x04);
  (void)in(0);
  EXPECT_EQ(in(2), 0x02);
}

TEST_F(Serial, LoopbackWiresOutputsToInputs) {
  out(4, 0x10 | 0x02 | 0x08); // loop, RTS, OUT2
  EXPECT_EQ(in(6) & 0xf0, 0x90);
  out(0, 'x');
  EXPECT_EQ(sink_.text, "");
  EXPECT_EQ(in(0), 'x');
  int rooms = 0;
  uart_.on_room([&] { ++rooms; });
  EXPECT_EQ(receive("y"), 0u);
  out(4, 0x0b);
  EXPECT_EQ(rooms, 1);
  EXPECT_EQ(in(6) & 0xf0, 0xb0);
  EXPECT_EQ(receive("y"), 1u);
}

TEST_F(Serial, LoopbackBeyondTheFifoOverruns) {
  out(4, 0x10);
  out(1, 0x04);
  out(0, 'a');
  out(0, 'b');
  EXPECT_TRUE(line());
  EXPECT_EQ(in(2), 0x06);
  EXPECT_EQ(in(5), 0x63);
  EXPECT_EQ(in(5), 0x61); // reading cleared it
  EXPECT_FALSE(line());
}

TEST_F(Serial, ModemChangesInterruptUntilMsrIsRead) {
  out(1, 0x08);
  out(4, 0x10); // CTS, DSR and DCD fall
  EXPECT_TRUE(line());
  EXPECT_EQ(in(2), 0x00);
  EXPECT_EQ(in(6), 0x0b);
  EXPECT_FALSE(line());
  out(4, 0x14); // RI rises: no delta
  EXPECT_FALSE(line());
  out(4, 0x10); // and ends
  EXPECT_EQ(in(6), 0x04);
}

TEST_F(Serial, ResetIsTheStateAfterPowerOn) {
  int rooms = 0;
  uart_.on_room([&] { ++rooms; });
  enable_fifo();
  out(1, 0x0f);
  out(4, 0x0b);
  out(7, 0x55);
  (void)receive("0123456789abcdefghij");
  EXPECT_TRUE(line());

  uart_.reset();

  EXPECT_FALSE(line());
  EXPECT_EQ(rooms, 1); // the line goes on
  EXPECT_EQ(in(1), 0);
  EXPECT_EQ(in(2), 0x01);
  EXPECT_EQ(in(4), 0);
  EXPECT_EQ(in(5), 0x60);
  EXPECT_EQ(in(7), 0);
}

} // namespace
} // namespace stopvisor::vmm
