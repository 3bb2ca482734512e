// SPDX-License-Identifier: Apache-2.0
// An AT keyboard, as far as a driver and one chord need it: every command is answered, and the keys that are there
// are Ctrl, Alt and Delete.
//
// It speaks scan code set 2 and no other; the controller (i8042.h) translates. Commands and answers: IBM PS/2
// Technical Reference, "101- and 102-key keyboards".
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>

#include "vmm/state/encoding.h"

namespace stopvisor::vmm {

// CONTEXT: under the lock of the controller it is plugged into.
class AtKeyboard {
public:
  static constexpr size_t kKeyBytes = 16; // its buffer

  // A byte the host sent.
  void receive(uint8_t byte);
  // The next byte for the host, if there is one; answers come before keys.
  [[nodiscard]] std::optional<uint8_t> next();
  [[nodiscard]] bool has_next() const noexcept { return !answers_.empty() || !keys_.empty(); }
  // Presses and lets go of Ctrl, Alt and Delete. RETURNS: false where the host told it to be silent, or does not
  // fetch its keys; no key was pressed then.
  [[nodiscard]] bool press_ctrl_alt_del();
  // As after power-on.
  void reset();
  // As StatefulDevice has them.
  void save_state(StateWriter& to) const;
  void restore_state(StateReader& from);

private:
  void answer(std::initializer_list<uint8_t> bytes) { answers_.insert(answers_.end(), bytes); }
  void set_defaults();

  std::deque<uint8_t> answers_;
  std::deque<uint8_t> keys_;
  uint8_t parameter_of_ = 0; // the command whose parameter comes next; 0: none
  uint8_t last_ = 0;         // sent
  bool scanning_ = true;
};

} // namespace stopvisor::vmm
