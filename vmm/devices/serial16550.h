// SPDX-License-Identifier: Apache-2.0
// A 16550A serial port on eight I/O ports, as PCs have it at 0x3f8 with IRQ 4.
//
// The line is infinitely fast: a byte written is sent at once, so that the transmitter is always empty. The
// receive FIFO is the chip's 16 bytes; more input waits with whoever brings it (receive() tells how much
// was taken, on_room() when to try again), so that nothing typed or piped in overruns it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "vmm/bus.h"
#include "vmm/serial_output.h"
#include "vmm/state/device_state.h"

namespace stopvisor::vmm {

// Registers and rules: National Semiconductor PC16550D data sheet, sections 8.1 to 8.8.
class Serial16550 final : public BusDevice, public StatefulDevice {
public:
  static constexpr uint64_t kPortCount = 8;
  static constexpr size_t kFifoBytes = 16;

  // `output` takes what the guest sends; null: nobody does. It must outlive the device. `set_interrupt` is
  // told each change of the interrupt line. It is called under the device's lock, so that the interrupt
  // controller sees the levels in their order: it must be a leaf (one ioctl), and not call the device.
  Serial16550(ByteSink* output, std::function<void(bool level)> set_interrupt);

  [[nodiscard]] std::string_view name() const noexcept override { return "serial16550"; }
  void read(uint64_t offset, std::span<std::byte> data) noexcept override;
  void write(uint64_t offset, std::span<const std::byte> data) noexcept override;
  void reset() noexcept override;
  void save_state(StateWriter& to) const override;
  void restore_state(StateReader& from) override;

  // Hands over input. CONTEXT: any thread, does not block. RETURNS: how many bytes were taken, from the
  // front; where these are not all, on_room's function is called once there is room.
  [[nodiscard]] size_t receive(std::span<const std::byte> bytes) noexcept;
  // Adds a function that is called once there is room again, after a receive() of anybody's that could not take
  // all; who calls receive() then may still be late. It is called under the device's lock: it must be a leaf, and
  // not call the device. RETURNS: what off_room() takes.
  using RoomListener = uint64_t;
  RoomListener on_room(std::function<void()> has_room);
  // No such call is running once this returned, nor will be.
  void off_room(RoomListener listener);

private:
  // What the chip holds; as it is made, so it is after a reset.
  struct Chip {
    bool transmit_pending = false; // the "transmitter empty" interrupt, until IIR was read
    std::array<uint8_t, kFifoBytes> input{};
    size_t input_head = 0;
    size_t input_count = 0;
    size_t trigger = 1;
    uint8_t interrupt_enable = 0;
    uint8_t fifo_control = 0;
    uint8_t line_control = 0;
    uint8_t modem_control = 0;
    uint8_t line_errors = 0;  // LSR's bits that a read clears
    uint8_t modem_deltas = 0; // MSR's bits that a read clears
    uint8_t scratch = 0;
    uint16_t divisor = 12; // 9600 baud
  };

  [[nodiscard]] uint8_t read_register(uint64_t offset);
  // RETURNS: the byte to send, if that is what the write does.
  [[nodiscard]] std::optional<std::byte> write_register(uint64_t offset, uint8_t value);
  [[nodiscard]] uint8_t read_data();
  [[nodiscard]] std::optional<std::byte> write_data(uint8_t value);
  void write_interrupt_enable(uint8_t value);
  void write_fifo_control(uint8_t value);
  void write_modem_control(uint8_t value);
  [[nodiscard]] uint8_t modem_lines() const;
  [[nodiscard]] uint8_t interrupt_cause() const;
  [[nodiscard]] bool fifo_enabled() const;
  [[nodiscard]] bool loops_back() const;
  [[nodiscard]] size_t capacity() const;
  void clear_input();
  void tell_room();
  void update_line();

  ByteSink* const output_;
  const std::function<void(bool)> set_interrupt_;

  mutable std::mutex lock_; // guards everything below; output_ is called without it
  std::vector<std::pair<RoomListener, std::function<void()>>> room_listeners_;
  RoomListener last_room_listener_ = 0;
  bool wants_room_ = false; // a receive() could not take everything
  bool line_ = false;
  Chip chip_;
};

} // namespace stopvisor::vmm
