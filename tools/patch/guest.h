// SPDX-License-Identifier: Apache-2.0
// The guest as the patch engine sees it: memory, registers, and stops. A test puts its own behind the engine.
#pragma once

#include <chrono>
#include <cstdint>
#include <expected>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "stopper/function_ref.h"
#include "vmm/address.h"
#include "vmm/error.h"
#include "vmm/guest_memory.h"
#include "vmm/linux/linux_kernel.h"
#include "vmm/registers.h"

namespace stopvisor::patch {

using SteadyTime = std::chrono::steady_clock::time_point;

// What one stop cost the guest.
struct StopTimes {
  uint64_t sequence = 0;
  int64_t gather_ns = 0; // asked for to all held
  int64_t hold_ns = 0;   // first participant held to last released
  size_t participants = 0;
};

class Guest {
public:
  using Kernel = std::shared_ptr<const vmm::LinuxKernel>;
  // What is known while the guest is held.
  struct Moment {
    Kernel kernel; // null where none was asked for
    uint64_t sequence = 0;
  };
  using Body = stopper::FunctionRef<std::expected<void, vmm::Error>(const Moment&)>;
  struct Wanted {
    const char* operation = "";
    SteadyTime deadline;
    bool kernel = false; // the guest is a Linux, found and verified under the same stop
    std::string symbols; // its vmlinux or System.map; empty: those it carries
  };

  virtual ~Guest() = default;
  // Runs `body` while the guest is held. CONTEXT: blocks. RETURNS: what it returns; kBusy where the guest was not
  // held in time, kRefused where the kernel is wanted and there is none. `body` was not run then.
  [[nodiscard]] virtual std::expected<void, vmm::Error> under_stop(const Wanted& wanted, Body body) = 0;
  // Registers will be asked for under the stops that are asked for from now on, or no more. CONTEXT: does not
  // block.
  virtual void expect_registers(bool expected) noexcept = 0;
  // Of a stop that `body` saw; nothing where it goes on, or another came after it. CONTEXT: blocks shortly.
  [[nodiscard]] virtual std::optional<StopTimes> times_of(uint64_t sequence) = 0;

  [[nodiscard]] virtual const vmm::GuestMemory& memory() const noexcept = 0;
  // How often the guest has been reset: with each, all that was patched is gone.
  [[nodiscard]] virtual uint64_t resets() const noexcept = 0;

  // CONTEXT, those that follow: under a stop.
  [[nodiscard]] virtual uint32_t cpus() const noexcept = 0;
  // But for `halted` and `waiting`, which take a call of KVM's: that is held time.
  [[nodiscard]] virtual std::expected<vmm::Registers, vmm::Error> registers(uint32_t cpu) const = 0;
  // Whether it waits to be started, and will begin elsewhere than its registers say.
  [[nodiscard]] virtual bool waits_to_start(uint32_t cpu) const = 0;
  // Writes guest memory, and notes it for who watches dirty pages. RETURNS: false where it cannot be written.
  [[nodiscard]] virtual bool write(vmm::Gpa gpa, std::span<std::byte> to,
                                   std::span<const std::byte> from) noexcept = 0;
};

// While it lives, stops come with registers.
class RegisterExpectation {
public:
  explicit RegisterExpectation(Guest& guest) noexcept : guest_(guest) { guest_.expect_registers(true); }
  ~RegisterExpectation() { guest_.expect_registers(false); }
  RegisterExpectation(const RegisterExpectation&) = delete;
  RegisterExpectation& operator=(const RegisterExpectation&) = delete;

private:
  Guest& guest_;
};

} // namespace stopvisor::patch
