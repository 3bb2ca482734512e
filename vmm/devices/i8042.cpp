// SPDX-License-Identifier: Apache-2.0
#include "vmm/devices/i8042.h"

#include <algorithm>
#include <utility>

namespace stopvisor::vmm {
namespace {

constexpr uint8_t kStatusOutputFull = 0x01, kStatusSystem = 0x04, kStatusCommand = 0x08, kStatusUnlocked = 0x10;
constexpr uint8_t kModeInterrupt = 0x01, kModeSystem = 0x04, kModeKeyboardOff = 0x10, kModeMouseOff = 0x20,
                  kModeTranslate = 0x40;
// As a BIOS leaves it.
constexpr uint8_t kModeAtStart = kModeInterrupt | kModeSystem | kModeMouseOff | kModeTranslate;

constexpr uint8_t kReadMode = 0x20, kWriteMode = 0x60, kMouseOff = 0xa7, kMouseOn = 0xa8, kTestMouse = 0xa9,
                  kSelfTest = 0xaa, kTestKeyboard = 0xab, kKeyboardOff = 0xad, kKeyboardOn = 0xae,
                  kReadInputPort = 0xc0, kReadOutputPort = 0xd0, kWriteOutputPort = 0xd1, kWriteOutput = 0xd2,
                  kWriteMouse = 0xd4, kFirstPulse = 0xf0;
constexpr uint8_t kSelfTestPassed = 0x55, kNoError = 0x00;
constexpr uint8_t kMouseClockStuck = 0x02; // nothing answers at the second port
constexpr uint8_t kNotInhibited = 0x80;    // input port
constexpr uint8_t kNoReset = 0x01, kA20 = 0x02, kOutputPortFull = 0x10;
constexpr uint8_t kLetGo = 0xf0, kBreakBit = 0x80;
constexpr uint64_t kMostAnswers = 16;

} // namespace

I8042::Chip::Chip() : mode(kModeAtStart) {}

I8042::I8042(GuestRequestSink sink, std::function<void(bool level)> set_interrupt)
    : sink_(std::move(sink)), set_interrupt_(std::move(set_interrupt)) {}

std::expected<void, Error> I8042::attach_to(Bus& ports) {
  if (auto done = ports.attach(kKeyboardDataPort, 1, data_port_); !done)
    return done;
  return ports.attach(kKeyboardCommandPort, 1, command_port_);
}

void I8042::Port::read(uint64_t /*offset*/, std::span<std::byte> data) noexcept {
  std::fill(data.begin(), data.end(), std::byte{0xff});
  const std::lock_guard guard(chip_.lock_);
  if (!data.empty())
    data[0] = std::byte{is_data_ ? chip_.read_data() : chip_.status()};
}

void I8042::Port::write(uint64_t /*offset*/, std::span<const std::byte> data) noexcept {
  if (data.size() != 1)
    return;
  const auto value = std::to_integer<uint8_t>(data[0]);
  bool resets = false;
  {
    const std::lock_guard guard(chip_.lock_);
    resets = is_data_ ? chip_.write_data(value) : chip_.run_command(value);
    chip_.fill_output();
  }
  if (resets)
    chip_.sink_(GuestRequest::kReset);
}

bool I8042::press_ctrl_alt_del() noexcept {
  const std::lock_guard guard(lock_);
  if ((chip_.mode & kModeKeyboardOff) != 0 || !keyboard_.press_ctrl_alt_del())
    return false;
  chords_.fetch_add(1, std::memory_order_relaxed); // a counter by itself
  fill_output();
  return true;
}

void I8042::reset() noexcept {
  const std::lock_guard guard(lock_);
  chip_ = {};
  keyboard_.reset();
  update_line();
}

// The line follows from the rest.
void I8042::save_state(StateWriter& to) const {
  const std::lock_guard guard(lock_);
  put_fields(to, chip_.output, chip_.output_full, chip_.last_was_command, chip_.parameter_of, chip_.mode,
             chip_.let_go);
  to.put(static_cast<uint8_t>(chip_.answers.size()));
  for (const uint8_t byte : chip_.answers)
    to.put(byte);
  keyboard_.save_state(to);
}

void I8042::restore_state(StateReader& from) {
  const std::lock_guard guard(lock_);
  Chip chip;
  get_fields(from, chip.output, chip.output_full, chip.last_was_command, chip.parameter_of, chip.mode, chip.let_go);
  const auto count = from.get<uint8_t>();
  from.refuse_unless(count <= kMostAnswers, "more answers wait than there is room for");
  for (const std::byte byte : from.get_bytes(count))
    chip.answers.push_back(std::to_integer<uint8_t>(byte));
  keyboard_.restore_state(from);
  chip_ = std::move(chip);
  line_ = chip_.output_full && (chip_.mode & kModeInterrupt) != 0;
}

// What is written is taken at once: the input buffer is never full.
uint8_t I8042::status() const {
  return static_cast<uint8_t>(kStatusUnlocked | (chip_.output_full ? kStatusOutputFull : 0) |
                              (chip_.mode & kStatusSystem) | (chip_.last_was_command ? kStatusCommand : 0));
}

uint8_t I8042::read_data() {
  const uint8_t value = chip_.output;
  chip_.output_full = false;
  update_line(); // down, so that the next byte is an edge
  fill_output();
  return value;
}

bool I8042::write_data(uint8_t value) {
  chip_.last_was_command = false;
  switch (std::exchange(chip_.parameter_of, uint8_t{0})) {
  case kWriteMode:
    chip_.mode = value;
    break;
  case kWriteOutputPort: // A20 is always on
    return (value & kNoReset) == 0;
  case kWriteOutput:
    if (chip_.answers.size() < kMostAnswers)
      chip_.answers.push_back(value);
    break;
  case kWriteMouse: // nobody is there to take it
    break;
  default:
    chip_.mode &= static_cast<uint8_t>(~kModeKeyboardOff); // as the AT has it
    keyboard_.receive(value);
  }
  return false;
}

bool I8042::run_command(uint8_t value) {
  chip_.last_was_command = true;
  chip_.parameter_of = 0;
  const auto answer = [this](uint8_t byte) { chip_.answers.assign(1, byte); };
  switch (value) {
  case kReadMode:
    answer(chip_.mode);
    break;
  case kWriteMode:
  case kWriteOutputPort:
  case kWriteOutput:
  case kWriteMouse:
    chip_.parameter_of = value;
    break;
  case kMouseOff:
    chip_.mode |= kModeMouseOff;
    break;
  case kMouseOn:
    chip_.mode &= static_cast<uint8_t>(~kModeMouseOff);
    break;
  case kTestMouse:
    answer(kMouseClockStuck);
    break;
  case kSelfTest:
    chip_.mode |= kModeSystem;
    answer(kSelfTestPassed);
    break;
  case kTestKeyboard:
    answer(kNoError);
    break;
  case kKeyboardOff:
    chip_.mode |= kModeKeyboardOff;
    break;
  case kKeyboardOn:
    chip_.mode &= static_cast<uint8_t>(~kModeKeyboardOff);
    break;
  case kReadInputPort:
    answer(kNotInhibited);
    break;
  case kReadOutputPort:
    answer(static_cast<uint8_t>(kNoReset | kA20 | (chip_.output_full ? kOutputPortFull : 0)));
    break;
  default: // lines are pulsed where their bits are 0; what is not known is ignored
    return value >= kFirstPulse && (value & 1) == 0;
  }
  return false;
}

void I8042::fill_output() {
  if (!chip_.output_full && !chip_.answers.empty()) {
    chip_.output = chip_.answers.front();
    chip_.answers.pop_front();
    chip_.output_full = true;
  }
  while (!chip_.output_full && (chip_.mode & kModeKeyboardOff) == 0 && keyboard_.has_next()) {
    const uint8_t code = keyboard_.next().value_or(0);
    const bool translates = (chip_.mode & kModeTranslate) != 0;
    if (translates && code == kLetGo) {
      chip_.let_go = true; // becomes a bit of the next code
      continue;
    }
    chip_.output = translates ? translated(code) : code;
    chip_.output_full = true;
  }
  update_line();
}

// Set 2 to set 1, for what this keyboard sends: its keys, the second byte of its identity, and the number of its
// set. The controller's table leaves codes from 0x85 on as they are.
uint8_t I8042::translated(uint8_t code) {
  const uint8_t break_bit = std::exchange(chip_.let_go, false) ? kBreakBit : uint8_t{0};
  switch (code) {
  case 0x14: // Ctrl
    return 0x1d | break_bit;
  case 0x11: // Alt
    return 0x38 | break_bit;
  case 0x71: // Delete, after 0xe0
    return 0x53 | break_bit;
  case 0x83:
  case 0x02:
    return 0x41;
  default:
    return code;
  }
}

void I8042::update_line() {
  const bool level = chip_.output_full && (chip_.mode & kModeInterrupt) != 0;
  if (level == line_)
    return;
  line_ = level;
  if (set_interrupt_)
    set_interrupt_(level);
}

} // namespace stopvisor::vmm
