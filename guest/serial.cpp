// SPDX-License-Identifier: Apache-2.0
// Polled output on a 16550.
#include "guest/serial.h"

#include "guest/port.h"

namespace stopvisor::probe {
namespace {

constexpr uint16_t kCom1 = 0x3f8;
constexpr uint16_t kFifoControl = kCom1 + 2;
constexpr uint16_t kLineControl = kCom1 + 3;
constexpr uint16_t kModemControl = kCom1 + 4;
constexpr uint16_t kLineStatus = kCom1 + 5;
constexpr uint8_t kTransmitterEmpty = 0x20;
constexpr uint32_t kFifoBytes = 16;
constexpr uint32_t kMaxPolls = 100'000; // a UART that never empties loses text, it does not stop the guest

bool g_present;  // vCPU 0 writes it before any other vCPU runs
uint32_t g_room; // characters the FIFO takes for sure

// Each port access may leave the guest, so the line status is read once for a FIFO full of characters.
void put(char character) {
  if (g_room == 0) {
    for (uint32_t poll = 0; poll < kMaxPolls && (in8(kLineStatus) & kTransmitterEmpty) == 0; ++poll) {
    }
    g_room = kFifoBytes;
  }
  --g_room;
  out8(kCom1, static_cast<uint8_t>(character));
}

} // namespace

void serial_init() {
  g_present = in8(kLineStatus) != 0xff;
  if (!g_present)
    return;
  out8(kCom1 + 1, 0);     // no interrupts
  out8(kLineControl, 3);  // 8 bits, no parity, one stop bit
  out8(kFifoControl, 7);  // FIFOs on and empty
  out8(kModemControl, 3); // DTR, RTS
}

void print(const char* text, uint32_t length) {
  if (!g_present)
    return;
  for (uint32_t i = 0; i < length; ++i) {
    if (text[i] == '\n')
      put('\r');
    put(text[i]);
  }
}

void print(const char* text) {
  uint32_t length = 0;
  while (text[length] != 0)
    ++length;
  print(text, length);
}

void print_decimal(uint64_t value) {
  char digits[20];
  uint32_t at = sizeof digits;
  do {
    digits[--at] = static_cast<char>('0' + value % 10);
    value /= 10;
  } while (value != 0);
  print(digits + at, static_cast<uint32_t>(sizeof digits) - at);
}

void print_hex(uint64_t value) {
  char digits[18];
  uint32_t at = sizeof digits;
  do {
    digits[--at] = "0123456789abcdef"[value % 16];
    value /= 16;
  } while (value != 0);
  digits[--at] = 'x';
  digits[--at] = '0';
  print(digits + at, static_cast<uint32_t>(sizeof digits) - at);
}

} // namespace stopvisor::probe
