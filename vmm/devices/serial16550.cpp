// SPDX-License-Identifier: Apache-2.0
#include "vmm/devices/serial16550.h"

#include <utility>

namespace stopvisor::vmm {
namespace {

// Register offsets; 0 and 1 are the divisor's bytes while LCR's DLAB is set.
constexpr uint64_t kData = 0, kInterruptEnable = 1, kInterruptIdentity = 2, kLineControl = 3, kModemControl = 4,
                   kLineStatus = 5, kModemStatus = 6, kScratch = 7;

constexpr uint8_t kIerReceived = 0x01, kIerTransmitEmpty = 0x02, kIerLineStatus = 0x04, kIerModemStatus = 0x08;
// IIR causes, by falling priority.
constexpr uint8_t kCauseLineStatus = 0x06, kCauseReceived = 0x04, kCauseTimeout = 0x0c, kCauseTransmitEmpty = 0x02,
                  kCauseModemStatus = 0x00, kCauseNone = 0x01;
constexpr uint8_t kIirFifosEnabled = 0xc0;
constexpr uint8_t kFcrEnable = 0x01, kFcrClearInput = 0x02;
constexpr uint8_t kLcrDivisorAccess = 0x80;
constexpr uint8_t kMcrDtr = 0x01, kMcrRts = 0x02, kMcrOut1 = 0x04, kMcrOut2 = 0x08, kMcrLoop = 0x10, kMcrAll = 0x1f;
constexpr uint8_t kLsrDataReady = 0x01, kLsrOverrun = 0x02, kLsrTransmitEmpty = 0x60; // THRE and TEMT
constexpr uint8_t kMsrCts = 0x10, kMsrDsr = 0x20, kMsrRing = 0x40, kMsrCarrier = 0x80;
constexpr uint8_t kMsrDeltaRing = 0x04; // the others' deltas lie 4 bits below their lines
constexpr std::array<size_t, 4> kTriggers{1, 4, 8, 14};

constexpr uint8_t byte_of(unsigned value) {
  return static_cast<uint8_t>(value);
}

} // namespace

Serial16550::Serial16550(ByteSink* output, std::function<void(bool level)> set_interrupt)
    : output_(output), set_interrupt_(std::move(set_interrupt)) {}

// The port is 8 bits wide: a wider access becomes one to each port in turn, as on the ISA bus.
void Serial16550::read(uint64_t offset, std::span<std::byte> data) noexcept {
  const std::lock_guard guard(lock_);
  for (size_t i = 0; i < data.size(); ++i)
    data[i] = std::byte{read_register(offset + i)};
}

void Serial16550::write(uint64_t offset, std::span<const std::byte> data) noexcept {
  for (size_t i = 0; i < data.size(); ++i) {
    std::optional<std::byte> sent;
    {
      const std::lock_guard guard(lock_);
      sent = write_register(offset + i, std::to_integer<uint8_t>(data[i]));
    }
    if (sent && output_ != nullptr)
      output_->put(*sent);
  }
}

void Serial16550::reset() noexcept {
  const std::lock_guard guard(lock_);
  chip_ = {};
  tell_room();
  update_line();
}

// The line and the FIFO's trigger follow from the rest.
void Serial16550::save_state(StateWriter& to) const {
  const std::lock_guard guard(lock_);
  put_fields(to, chip_.transmit_pending, chip_.interrupt_enable, chip_.fifo_control, chip_.line_control,
             chip_.modem_control, chip_.line_errors, chip_.modem_deltas, chip_.scratch, chip_.divisor);
  to.put(static_cast<uint8_t>(chip_.input_count));
  for (size_t i = 0; i < chip_.input_count; ++i)
    to.put(chip_.input[(chip_.input_head + i) % kFifoBytes]);
}

void Serial16550::restore_state(StateReader& from) {
  const std::lock_guard guard(lock_);
  Chip chip;
  get_fields(from, chip.transmit_pending, chip.interrupt_enable, chip.fifo_control, chip.line_control,
             chip.modem_control, chip.line_errors, chip.modem_deltas, chip.scratch, chip.divisor);
  chip.input_count = from.get<uint8_t>();
  from.refuse_unless(chip.interrupt_enable <= 0x0f && chip.modem_control <= kMcrAll &&
                         (chip.line_errors & ~kLsrOverrun) == 0 && chip.modem_deltas <= 0x0f,
                     "a register has bits that the chip has not");
  from.refuse_unless((chip.fifo_control & kFcrClearInput) == 0, "a FIFO that is being cleared");
  const bool fifo = (chip.fifo_control & kFcrEnable) != 0;
  if (chip.input_count > (fifo ? kFifoBytes : 1))
    return from.refuse("more input than there is room for");
  for (size_t i = 0; i < chip.input_count; ++i)
    chip.input[i] = from.get<uint8_t>();
  chip.trigger = fifo ? kTriggers[chip.fifo_control >> 6] : 1;
  chip_ = chip;
  line_ = interrupt_cause() != kCauseNone;
}

size_t Serial16550::receive(std::span<const std::byte> bytes) noexcept {
  const std::lock_guard guard(lock_);
  size_t taken = 0;
  while (taken < bytes.size() && !loops_back() && chip_.input_count < capacity()) {
    chip_.input[(chip_.input_head + chip_.input_count) % kFifoBytes] = std::to_integer<uint8_t>(bytes[taken]);
    ++chip_.input_count;
    ++taken;
  }
  wants_room_ = wants_room_ || taken < bytes.size();
  update_line();
  return taken;
}

Serial16550::RoomListener Serial16550::on_room(std::function<void()> has_room) {
  const std::lock_guard guard(lock_);
  room_listeners_.emplace_back(++last_room_listener_, std::move(has_room));
  return last_room_listener_;
}

void Serial16550::off_room(RoomListener listener) {
  const std::lock_guard guard(lock_);
  std::erase_if(room_listeners_, [listener](const auto& entry) { return entry.first == listener; });
}

uint8_t Serial16550::read_register(uint64_t offset) {
  const bool divisor = (chip_.line_control & kLcrDivisorAccess) != 0;
  switch (offset) {
  case kData:
    return divisor ? byte_of(chip_.divisor & 0xff) : read_data();
  case kInterruptEnable:
    return divisor ? byte_of(chip_.divisor >> 8) : chip_.interrupt_enable;
  case kInterruptIdentity: {
    const uint8_t cause = interrupt_cause();
    if (cause == kCauseTransmitEmpty)
      chip_.transmit_pending = false;
    update_line();
    return byte_of(cause | (fifo_enabled() ? kIirFifosEnabled : 0));
  }
  case kLineControl:
    return chip_.line_control;
  case kModemControl:
    return chip_.modem_control;
  case kLineStatus: {
    const uint8_t errors = std::exchange(chip_.line_errors, uint8_t{0});
    update_line();
    return byte_of(kLsrTransmitEmpty | errors | (chip_.input_count != 0 ? kLsrDataReady : 0));
  }
  case kModemStatus: {
    const uint8_t deltas = std::exchange(chip_.modem_deltas, uint8_t{0});
    update_line();
    return byte_of(modem_lines() | deltas);
  }
  case kScratch:
    return chip_.scratch;
  default:
    return 0xff;
  }
}

std::optional<std::byte> Serial16550::write_register(uint64_t offset, uint8_t value) {
  const bool divisor = (chip_.line_control & kLcrDivisorAccess) != 0;
  switch (offset) {
  case kData:
    if (!divisor)
      return write_data(value);
    chip_.divisor = static_cast<uint16_t>((chip_.divisor & 0xff00) | value);
    break;
  case kInterruptEnable:
    if (divisor)
      chip_.divisor = static_cast<uint16_t>((chip_.divisor & 0xff) | value << 8);
    else
      write_interrupt_enable(value);
    break;
  case kInterruptIdentity:
    write_fifo_control(value);
    break;
  case kLineControl:
    chip_.line_control = value;
    break;
  case kModemControl:
    write_modem_control(value);
    break;
  case kScratch:
    chip_.scratch = value;
    break;
  default: // LSR and MSR are for reading
    break;
  }
  return std::nullopt;
}

uint8_t Serial16550::read_data() {
  if (chip_.input_count == 0)
    return 0;
  const uint8_t value = chip_.input[chip_.input_head];
  chip_.input_head = (chip_.input_head + 1) % kFifoBytes;
  --chip_.input_count;
  if (chip_.input_count == 0)
    tell_room();
  update_line();
  return value;
}

std::optional<std::byte> Serial16550::write_data(uint8_t value) {
  // Writing takes the interrupt back, and the byte is gone at once: the line falls and rises, which is the
  // edge that a guest waits for that never reads IIR.
  chip_.transmit_pending = false;
  update_line();
  chip_.transmit_pending = true;
  if (loops_back()) {
    if (chip_.input_count < capacity()) {
      chip_.input[(chip_.input_head + chip_.input_count) % kFifoBytes] = value;
      ++chip_.input_count;
    } else {
      chip_.line_errors |= kLsrOverrun;
    }
  }
  update_line();
  return loops_back() ? std::nullopt : std::optional(std::byte{value});
}

void Serial16550::write_interrupt_enable(uint8_t value) {
  const uint8_t before = std::exchange(chip_.interrupt_enable, byte_of(value & 0x0f));
  // Enabling it while the transmitter is empty, which it always is, raises the interrupt.
  if ((chip_.interrupt_enable & ~before & kIerTransmitEmpty) != 0)
    chip_.transmit_pending = true;
  update_line();
}

void Serial16550::write_fifo_control(uint8_t value) {
  const bool was_enabled = fifo_enabled();
  const bool enable = (value & kFcrEnable) != 0;
  if (enable != was_enabled || (enable && (value & kFcrClearInput) != 0))
    clear_input();
  chip_.fifo_control = enable ? byte_of(value & ~kFcrClearInput) : uint8_t{0};
  chip_.trigger = enable ? kTriggers[value >> 6] : 1;
  update_line();
}

void Serial16550::write_modem_control(uint8_t value) {
  const uint8_t before = modem_lines();
  const bool looped = loops_back();
  chip_.modem_control = byte_of(value & kMcrAll);
  const uint8_t after = modem_lines();
  chip_.modem_deltas |= byte_of(((before ^ after) & (kMsrCts | kMsrDsr | kMsrCarrier)) >> 4);
  if ((before & ~after & kMsrRing) != 0) // RI counts where it ends
    chip_.modem_deltas |= kMsrDeltaRing;
  if (looped && !loops_back())
    tell_room();
  update_line();
}

// In loopback the outputs are wired to the inputs; else a modem that is always ready is connected.
uint8_t Serial16550::modem_lines() const {
  if (!loops_back())
    return kMsrCts | kMsrDsr | kMsrCarrier;
  unsigned lines = 0;
  lines |= (chip_.modem_control & kMcrRts) != 0 ? kMsrCts : 0u;
  lines |= (chip_.modem_control & kMcrDtr) != 0 ? kMsrDsr : 0u;
  lines |= (chip_.modem_control & kMcrOut1) != 0 ? kMsrRing : 0u;
  lines |= (chip_.modem_control & kMcrOut2) != 0 ? kMsrCarrier : 0u;
  return byte_of(lines);
}

uint8_t Serial16550::interrupt_cause() const {
  if ((chip_.interrupt_enable & kIerLineStatus) != 0 && chip_.line_errors != 0)
    return kCauseLineStatus;
  if ((chip_.interrupt_enable & kIerReceived) != 0 &&
      chip_.input_count != 0) // below the trigger: the timeout, at once
    return chip_.input_count >= chip_.trigger ? kCauseReceived : kCauseTimeout;
  if ((chip_.interrupt_enable & kIerTransmitEmpty) != 0 && chip_.transmit_pending)
    return kCauseTransmitEmpty;
  if ((chip_.interrupt_enable & kIerModemStatus) != 0 && chip_.modem_deltas != 0)
    return kCauseModemStatus;
  return kCauseNone;
}

bool Serial16550::fifo_enabled() const {
  return (chip_.fifo_control & kFcrEnable) != 0;
}
bool Serial16550::loops_back() const {
  return (chip_.modem_control & kMcrLoop) != 0;
}
size_t Serial16550::capacity() const {
  return fifo_enabled() ? kFifoBytes : 1;
}

void Serial16550::clear_input() {
  chip_.input_count = 0;
  tell_room();
}

void Serial16550::tell_room() {
  if (!std::exchange(wants_room_, false))
    return;
  for (const auto& [listener, has_room] : room_listeners_)
    has_room();
}

void Serial16550::update_line() {
  const bool level = interrupt_cause() != kCauseNone;
  if (level == line_)
    return;
  line_ = level;
  if (set_interrupt_)
    set_interrupt_(level);
}

} // namespace stopvisor::vmm
