// SPDX-License-Identifier: Apache-2.0
// The keyboard controller of an AT: ports 0x60 and 0x64, interrupt 1, and the CPU's reset on one of its output
// lines.
//
// It is here for two things: Ctrl-Alt-Del reaches a guest through it, and kernels reset the machine by its pulse.
// It has no second port for a mouse, and tells a driver that looks for one.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <expected>
#include <functional>
#include <mutex>

#include "vmm/bus.h"
#include "vmm/devices/at_keyboard.h"
#include "vmm/guest_request.h"
#include "vmm/state/device_state.h"

namespace stopvisor::vmm {

inline constexpr uint16_t kKeyboardDataPort = 0x60;
inline constexpr uint16_t kKeyboardCommandPort = 0x64;
inline constexpr uint32_t kKeyboardGsi = 1;
inline constexpr uint8_t kKeyboardPulseReset = 0xfe; // pulse output line 0, which is the CPU's reset

// Registers and commands: IBM PC AT Technical Reference (1985), "Keyboard controller"; the status bits as PS/2 has
// them.
class I8042 final : public StatefulDevice {
public:
  // `set_interrupt` is told each change of the interrupt line, under the device's lock: it must be a leaf.
  I8042(GuestRequestSink sink, std::function<void(bool level)> set_interrupt);

  // Puts both ports on `ports`. RETURNS: as Bus::attach().
  [[nodiscard]] std::expected<void, Error> attach_to(Bus& ports);

  void save_state(StateWriter& to) const override;
  void restore_state(StateReader& from) override;

  // Presses and lets go of Ctrl, Alt and Delete. CONTEXT: any thread, does not block. RETURNS: false where the
  // guest does not read its keyboard, or silenced it.
  [[nodiscard]] bool press_ctrl_alt_del() noexcept;
  // How often that was done. CONTEXT: any thread.
  [[nodiscard]] uint64_t chords() const noexcept { return chords_.load(std::memory_order_relaxed); } // a counter

private:
  // The bus hands out offsets, and each port's is 0.
  class Port final : public BusDevice {
  public:
    Port(I8042& chip, bool is_data) : chip_(chip), is_data_(is_data) {}
    [[nodiscard]] std::string_view name() const noexcept override { return "keyboard controller"; }
    void read(uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(uint64_t offset, std::span<const std::byte> data) noexcept override;
    void reset() noexcept override { chip_.reset(); }

  private:
    I8042& chip_;
    const bool is_data_;
  };

  // CONTEXT, these: under the lock.
  [[nodiscard]] uint8_t status() const;
  [[nodiscard]] uint8_t read_data();
  [[nodiscard]] bool write_data(uint8_t value);  // true: reset the machine
  [[nodiscard]] bool run_command(uint8_t value); // true: reset the machine
  void fill_output();
  void update_line();
  [[nodiscard]] uint8_t translated(uint8_t code);

  void reset() noexcept;

  const GuestRequestSink sink_;
  const std::function<void(bool)> set_interrupt_;
  Port data_port_{*this, true};
  Port command_port_{*this, false};
  std::atomic<uint64_t> chords_{0};

  // What the chip holds; as it is made, so it is after a reset.
  struct Chip {
    std::deque<uint8_t> answers; // the controller's own, at most one at a time but for 0xd2
    uint8_t output = 0;          // the output buffer; what it held last once it was read
    bool output_full = false;
    bool last_was_command = false;
    uint8_t parameter_of = 0; // the command whose parameter comes next; 0: none
    uint8_t mode;             // the "command byte"
    bool let_go = false;      // 0xf0 came from the keyboard: the next code is a break code
    Chip();
  };
  mutable std::mutex lock_; // guards what follows
  bool line_ = false;
  AtKeyboard keyboard_;
  Chip chip_;
};

} // namespace stopvisor::vmm
