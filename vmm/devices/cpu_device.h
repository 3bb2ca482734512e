// SPDX-License-Identifier: Apache-2.0
// The CPU device: tells the guest which vCPUs it is to use, and is told which ones it has given up.
//
// A port register of 4 bytes for each possible vCPU; guest/probe_abi.h is its data sheet. The device only keeps
// what both sides say: bringing a vCPU online or taking it away is vm_cpus.cpp's.
//
//   absent ---- add() ----> wanted <--------- set_wanted(true) -----------+
//                           |                                           |
//                           v set_wanted(false)                         |
//                       asked for ---- kCpuGone, or a reset ----> gone --+
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <expected>
#include <functional>
#include <mutex>
#include <vector>

#include "vmm/bus.h"
#include "vmm/state/device_state.h"

namespace stopvisor::vmm {

class CpuDevice final : public StatefulDevice {
public:
  // A register for each of `possible` vCPUs, all absent. `pulse_interrupt` raises and lowers probe::kCpuGsi once;
  // it must be a leaf.
  CpuDevice(uint32_t possible, std::function<void()> pulse_interrupt);

  // Puts its parts (signature and count, registers) on the bus. RETURNS: as Bus::attach().
  [[nodiscard]] std::expected<void, Error> attach_to(Bus& ports);

  void save_state(StateWriter& to) const override;
  void restore_state(StateReader& from) override;

  // CONTEXT, all that follow: any thread but a vCPU's; `cpu` is possible.

  // The vCPU exists from now on, and the guest is to use it. `tells`: the guest runs, and is interrupted. Does not
  // block.
  void add(uint32_t cpu, bool tells);
  // Asks the guest to start the vCPU, or to give it up, and interrupts it. Does not block.
  void set_wanted(uint32_t cpu, bool wanted);
  [[nodiscard]] bool wanted(uint32_t cpu) const;

  enum class Answer {
    kGone,   // the guest runs nothing on it any more
    kNone,   // it has not said so by the deadline
    kClosed, // nobody will say so any more
  };
  // Blocks until the guest has given up a vCPU that is not wanted.
  [[nodiscard]] Answer await_gone(uint32_t cpu, std::chrono::steady_clock::time_point deadline);
  // The VM ends: whoever waits, and comes to wait, is told so. CONTEXT: any thread, does not block.
  void close() noexcept;

private:
  struct Entry {
    bool present = false;
    bool wanted = false;
    bool gone = false; // said by the guest since it was asked
  };

  // Read-only: signature, then the number of possible vCPUs.
  class Identity final : public BusDevice {
  public:
    explicit Identity(uint32_t possible) : possible_(possible) {}
    [[nodiscard]] std::string_view name() const noexcept override { return "CPU device"; }
    void read(uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(uint64_t offset, std::span<const std::byte> data) noexcept override;

  private:
    const uint32_t possible_;
  };
  // 4 bytes a vCPU.
  class Registers final : public BusDevice {
  public:
    explicit Registers(CpuDevice& device) : device_(device) {}
    [[nodiscard]] std::string_view name() const noexcept override { return "CPU registers"; }
    void read(uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(uint64_t offset, std::span<const std::byte> data) noexcept override;
    void reset() noexcept override { device_.reset(); }

  private:
    CpuDevice& device_;
  };

  void note_gone(uint32_t cpu) noexcept;
  void reset() noexcept;

  const std::function<void()> pulse_interrupt_;
  mutable std::mutex lock_; // a leaf
  std::condition_variable changed_;
  std::vector<Entry> entries_; // under the lock; its size is fixed
  bool closed_ = false;        // under the lock
  Identity identity_;
  Registers registers_{*this};
};

} // namespace stopvisor::vmm
