// SPDX-License-Identifier: Apache-2.0
#include "vmm/devices/at_keyboard.h"

#include <array>
#include <utility>

namespace stopvisor::vmm {
namespace {

constexpr uint8_t kSetLights = 0xed, kEcho = 0xee, kSelectSet = 0xf0, kIdentify = 0xf2, kSetRepeat = 0xf3,
                  kEnable = 0xf4, kDisable = 0xf5, kSetDefaults = 0xf6, kResend = 0xfe, kReset = 0xff;
// Of scan code set 3, which is not there; taken without effect, the last three with a parameter.
constexpr uint8_t kFirstOfAllKeys = 0xf7, kLastOfAllKeys = 0xfa, kFirstOfOneKey = 0xfb, kLastOfOneKey = 0xfd;

constexpr uint8_t kAck = 0xfa, kSelfTestPassed = 0xaa;
constexpr uint8_t kOurSet = 2;

// Make codes of left Ctrl, left Alt and Delete, and their break codes in the reverse order. 0xe0: an extended key,
// 0xf0: it is let go.
constexpr std::array<uint8_t, 11> kChord{0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14};

} // namespace

void AtKeyboard::receive(uint8_t byte) {
  answers_.clear(); // a command ends what was being sent
  switch (std::exchange(parameter_of_, uint8_t{0})) {
  case kSelectSet:
    if (byte == 0)
      return answer({kAck, kOurSet});
    return answer({byte == kOurSet ? kAck : kResend});
  case 0:
    break;
  default:
    if (byte < kSetLights) // a command in a parameter's place ends the one before
      return answer({kAck});
  }
  switch (byte) {
  case kSetLights:
  case kSelectSet:
  case kSetRepeat:
    parameter_of_ = byte;
    return answer({kAck});
  case kEcho:
    return answer({kEcho});
  case kIdentify:
    return answer({kAck, 0xab, 0x83});
  case kEnable:
    keys_.clear();
    scanning_ = true;
    return answer({kAck});
  case kDisable:
    set_defaults();
    scanning_ = false;
    return answer({kAck});
  case kSetDefaults:
    set_defaults();
    return answer({kAck});
  case kResend:
    return answer({last_});
  case kReset:
    reset();
    return answer({kAck, kSelfTestPassed});
  default:
    break;
  }
  if (byte >= kFirstOfAllKeys && byte <= kLastOfAllKeys)
    return answer({kAck});
  if (byte >= kFirstOfOneKey && byte <= kLastOfOneKey) {
    parameter_of_ = byte;
    return answer({kAck});
  }
  answer({kResend});
}

std::optional<uint8_t> AtKeyboard::next() {
  if (!has_next())
    return std::nullopt;
  std::deque<uint8_t>& from = answers_.empty() ? keys_ : answers_;
  last_ = from.front();
  from.pop_front();
  return last_;
}

bool AtKeyboard::press_ctrl_alt_del() {
  if (!scanning_ || keys_.size() + kChord.size() > kKeyBytes)
    return false;
  keys_.insert(keys_.end(), kChord.begin(), kChord.end());
  return true;
}

void AtKeyboard::save_state(StateWriter& to) const {
  put_fields(to, parameter_of_, last_, scanning_);
  for (const auto* const queue : {&answers_, &keys_}) {
    to.put(static_cast<uint8_t>(queue->size()));
    for (const uint8_t byte : *queue)
      to.put(byte);
  }
}

void AtKeyboard::restore_state(StateReader& from) {
  get_fields(from, parameter_of_, last_, scanning_);
  for (auto* const queue : {&answers_, &keys_}) {
    const auto count = from.get<uint8_t>();
    from.refuse_unless(count <= kKeyBytes, "more bytes wait in the keyboard than it has room for");
    const auto bytes = from.get_bytes(count);
    queue->clear();
    for (const std::byte byte : bytes)
      queue->push_back(std::to_integer<uint8_t>(byte));
  }
}

void AtKeyboard::set_defaults() {
  keys_.clear();
  scanning_ = true;
}

void AtKeyboard::reset() {
  answers_.clear();
  set_defaults();
  parameter_of_ = 0;
  last_ = 0;
}

} // namespace stopvisor::vmm
