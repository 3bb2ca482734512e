// SPDX-License-Identifier: Apache-2.0
// The virtual machine under stress, and what must be true of it whenever it is stopped.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "tests/stress/journal.h"
#include "tools/probe/probe_view.h"
#include "vmm/vm.h"

namespace stopvisor::stress {

class Target {
public:
  // With `tears`, clients update the ledger without a stop: for a test of the test.
  Target(vmm::Vm& vm, Journal& journal, bool tears) noexcept
      : vm_(vm), journal_(journal), probe_(vm.memory()), tears_(tears),
        hotplug_(vm.config().max_cpus > vm.config().cpus) {}

  [[nodiscard]] vmm::Vm& vm() noexcept { return vm_; }
  [[nodiscard]] const tools::ProbeView& probe() const noexcept { return probe_; }
  [[nodiscard]] Journal& journal() noexcept { return journal_; }

  // CONTEXT, up to the next mark: under a full stop, which `Alone` proves.

  // Only one callback at a time may have the machine for itself.
  class Alone {
  public:
    explicit Alone(Target& target);
    ~Alone() { target_.inside_.store(false, std::memory_order_release); } // S1
    Alone(const Alone&) = delete;
    Alone& operator=(const Alone&) = delete;

  private:
    Target& target_;
  };
  // The guest has set itself up, and no reset is on its way: its memory may be changed.
  [[nodiscard]] bool ready() const noexcept;
  void update_ledger() noexcept;
  void update_code() noexcept;
  // Makes the guest reset itself at a code site.
  void plant_reset() noexcept;
  // Looks at every counter of guest and device, at the mailboxes, and whether the guest is at rest.
  void inspect();

  // CONTEXT: any thread, whenever.

  // Whether vCPUs [0, kMaxCpus) of `mask` do nothing for a moment.
  void expect_at_rest(const stopper::CpuMask& mask, const char* during);
  [[nodiscard]] bool has_ended() const noexcept { return ended_.load(std::memory_order_acquire); } // S2
  // The VM ends from now on: that a stop is refused for it is right.
  void note_end() noexcept { ended_.store(true, std::memory_order_release); } // S2, pairs with has_ended()
  [[nodiscard]] bool tears() const noexcept { return tears_; }
  // Whether vCPUs come and go.
  [[nodiscard]] bool hotplug() const noexcept { return hotplug_; }
  // All vCPUs that are online are at work in the guest.
  [[nodiscard]] bool settled() const;

private:
  void inspect_cpu(uint32_t cpu);
  [[nodiscard]] uint64_t work_done(uint32_t cpu) const noexcept;

  vmm::Vm& vm_;
  Journal& journal_;
  const tools::ProbeView probe_;
  const bool tears_;
  const bool hotplug_;
  std::atomic<bool> inside_{false};
  std::atomic<bool> ended_{false};
  // Under a stop:
  uint64_t ledger_ = 0;
  uint8_t code_ = 0;
  uint64_t resets_needed_ = 0;
};

} // namespace stopvisor::stress
