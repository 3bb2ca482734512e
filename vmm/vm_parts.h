// SPDX-License-Identifier: Apache-2.0
// What a Vm is made of, in the order in which the parts depend on each other. Private to vm*.cpp.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "stopper/native.h"
#include "vmm/absent_memory.h"
#include "vmm/bus.h"
#include "vmm/console_input.h"
#include "vmm/console_ring.h"
#include "vmm/device_worker.h"
#include "vmm/devices/acpi_power.h"
#include "vmm/devices/cpu_device.h"
#include "vmm/devices/doorbell.h"
#include "vmm/devices/i8042.h"
#include "vmm/devices/power.h"
#include "vmm/devices/pvpanic.h"
#include "vmm/devices/reset_port.h"
#include "vmm/devices/serial16550.h"
#include "vmm/kvm_system.h"
#include "vmm/kvm_vm.h"
#include "vmm/register_wishes.h"
#include "vmm/serial_output.h"
#include "vmm/state/device_state.h"
#include "vmm/state/section.h"
#include "vmm/terminal.h"
#include "vmm/test_hooks.h"
#include "vmm/vcpus.h"
#include "vmm/virtio/slot.h"
#include "vmm/vm.h"
#include "vmm/vm_life.h"
#include "vmm/written_pages.h"

namespace stopvisor::vmm {

inline constexpr uint32_t kStateVersion = 1; // of each kind of section

struct Vm::Parts final : private stopper::Kick {
  Parts(VmConfig its_config, KvmSystem its_system, GuestMemory its_memory,
        std::unique_ptr<SerialOutput> its_output);
  ~Parts() override;
  Parts(const Parts&) = delete;
  Parts& operator=(const Parts&) = delete;

  // What has no need of KVM's VM; a thread begins to make that. `files` are read, where not bare.
  [[nodiscard]] static std::expected<std::unique_ptr<Parts>, Error> begin(VmConfig config, class BootFiles& files);
  [[nodiscard]] std::expected<void, Error> await_made();
  [[nodiscard]] std::expected<void, Error> finish_making();
  // RETURNS: kUsage where await_made() was not called, or what it said.
  [[nodiscard]] std::expected<void, Error> check_made(const char* operation) const;
  [[nodiscard]] std::expected<void, Error> attach_devices(std::vector<std::unique_ptr<virtio::Device>> devices);
  [[nodiscard]] std::expected<std::unique_ptr<Vcpu>, Error> make_vcpu(uint32_t cpu);
  // Of one that KVM has made. CONTEXT: several threads at once, for different ones.
  [[nodiscard]] std::expected<std::unique_ptr<Vcpu>, Error> make_vcpu(uint32_t cpu, KvmVcpu vcpu);
  // What the clocks of a held machine said when its state was saved first: they go on while it is held.
  struct Instant {
    uint64_t stop = 0; // the stop's number
    ClockValues clock;
    uint64_t tsc = 0; // vCPU 0's, and its offset from the host's where KVM tells
    std::optional<uint64_t> offset{};
    std::vector<kvm_lapic_state> lapics{}; // by vCPU, as they were
  };
  // vm_state.cpp and vm_restore.cpp. What Vm's have, and its parts.
  [[nodiscard]] std::expected<std::vector<StateSection>, Error> save_state();
  [[nodiscard]] std::expected<void, Error> restore_state(std::span<const StateSection> sections,
                                                         const RestoreChoices& choices);
  [[nodiscard]] std::expected<Instant*, Error> note_instant();
  [[nodiscard]] std::expected<void, Error> save_vcpu(uint32_t cpu, Instant& at, std::vector<StateSection>& to);
  [[nodiscard]] std::expected<void, Error> restore_machine(class StateSections& from);
  [[nodiscard]] std::expected<void, Error> bring_needed(std::span<const StateSection> sections);
  [[nodiscard]] std::expected<void, Error> restore_vcpus(class StateSections& from,
                                                         class WallClockPage& wall_clock);
  [[nodiscard]] std::expected<void, Error> restore_devices(class StateSections& from);
  [[nodiscard]] std::expected<void, Error> renew_generation();
  struct StatefulPart {
    StateKind kind;
    uint32_t version;
    uint32_t instance;
    StatefulDevice* device;
  };
  // All devices that have a state, in the order in which it is saved and restored.
  [[nodiscard]] std::vector<StatefulPart> stateful_parts();

  // Puts the boot files into fresh memory, and vCPU 0 at their entry.
  [[nodiscard]] std::expected<void, Error> load(const class BootFiles& files, std::span<const std::byte> tree);

  // Makes threads, takes the start-up hold where one is wanted, opens the gates.
  [[nodiscard]] std::expected<void, Error> start();
  [[nodiscard]] std::expected<void, Error> start_console();
  // Joins everything that start() made. CONTEXT: after life.end().
  void join();
  // The reset thread: makes resets until the VM ends.
  void serve_resets() noexcept;
  [[nodiscard]] std::expected<void, Error> reset();
  [[nodiscard]] std::expected<void, Error> reset_held(const class BootFiles& files);

  // vm_cpus.cpp. CONTEXT: under change_lock, but for the checks.
  [[nodiscard]] std::expected<void, Error> check_runs(const char* operation) const;
  [[nodiscard]] std::expected<void, Error> check_cpu(const char* operation, uint32_t cpu) const;
  [[nodiscard]] std::expected<void, Error> bring_online(const char* operation, uint32_t cpu, Vcpu& vcpu,
                                                        stopper::TimePoint deadline);
  [[nodiscard]] std::expected<void, Error> join_machine(const char* operation, uint32_t cpu, Vcpu& vcpu,
                                                        stopper::TimePoint deadline);
  [[nodiscard]] std::expected<bool, Error> ask_to_give_up(const char* operation, uint32_t cpu,
                                                          stopper::TimePoint deadline);
  [[nodiscard]] std::expected<void, Error> take_offline(const char* operation, uint32_t cpu,
                                                        stopper::TimePoint deadline);
  [[nodiscard]] Error not_given_up(const char* operation, uint32_t cpu, stopper::Nanoseconds within);
  // vCPUs that exist and are wanted; the others are "disabled" in the device tree.
  [[nodiscard]] stopper::CpuMask wanted_cpus() const;

  // For buttons and keys, which only a running guest feels.
  [[nodiscard]] std::expected<void, Error> check_takes_keys() const;
  // How a device named `by` asks for a reset: who did it last is remembered.
  [[nodiscard]] GuestRequestSink requests_of(const char* by);
  // Tells whoever listens what happened to the VM.
  void tell(const std::string& event) const;

  // What the probe guest says of its crash; empty for other guests.
  [[nodiscard]] std::string crash_note() const;
  [[nodiscard]] Error explain(const std::string& operation, const stopper::StopError& error) const;

  // stopper::Kick
  void kick(stopper::CpuId cpu) noexcept override { is_vcpu(cpu) ? vcpus[cpu].thread.kick() : worker(cpu).kick(); }
  Lift lift(stopper::CpuId cpu) noexcept override {
    if (!lifts_allowed.load(std::memory_order_relaxed)) // a switch by itself
      return Lift::kNotNeeded;
    return is_vcpu(cpu) ? vcpus[cpu].thread.lift() : worker(cpu).lift();
  }
  void restore(stopper::CpuId cpu) noexcept override {
    is_vcpu(cpu) ? vcpus[cpu].thread.restore() : worker(cpu).restore();
  }
  // Else a device worker.
  [[nodiscard]] bool is_vcpu(stopper::CpuId cpu) const noexcept { return cpu < machine.first_worker(); }
  [[nodiscard]] DeviceWorker& worker(stopper::CpuId participant) const noexcept {
    return *workers[participant - machine.first_worker()];
  }
  // The VM ends: everybody is let go, and looks.
  void let_out() noexcept;

  const VmConfig config;
  KvmSystem system; // const once the machine is made
  GuestMemory memory;
  std::unique_ptr<AbsentMemory> absent; // of one that was restored, until nothing uses the memory; before start()
  WrittenPages written_pages{memory.slots()};
  FreezePlace freeze_place;
  std::atomic<bool> dirty_log_taken{false};
  KvmVm kvm; // the making thread's, until await_made()
  VcpuHookPoint hooks;
  RegisterWishes register_wishes;

  const std::unique_ptr<SerialOutput> output; // null: only who attaches to the console reads the serial port
  ConsoleRing console_ring{output.get()};
  Serial16550 serial;
  PowerDevice power;
  AcpiPower acpi_power;
  PvPanic pvpanic;
  Doorbell doorbell;
  CpuDevice cpu_device;
  I8042 keyboard;
  ResetControlPort reset_control;
  Bus ports;
  Bus mmio;
  mutable std::mutex tree_lock;       // a leaf
  std::vector<std::byte> device_tree; // under the lock once the VM runs: each reset makes it anew

  VmLife life;
  stopper::StopMachine machine;
  stopper::StopService stops;
  Vcpus vcpus;
  stopper::BasicLock<stopper::FutexPlatform> change_lock; // one change of the set of vCPUs at a time; outermost
  std::vector<std::unique_ptr<virtio::Slot>> slots;       // in their order; fixed before start(), as the next
  std::vector<std::unique_ptr<DeviceWorker>> workers;     // by participant: the doorbell's, then one for each slot

  std::optional<Instant> instant;  // under a stop
  stopper::CpuMask starts_offline; // of a machine that was restored; before start()
  bool has_needed = false;         // bring_needed() has brought it; before start()

  std::atomic<bool> started{false};
  std::atomic<bool> lifts_allowed{true};
  std::atomic<uint64_t> resets{0};
  std::atomic<const char*> reset_by{nullptr};       // who asked last
  std::function<void(const std::string&)> listener; // set before start()
  std::mutex join_lock; // taken by whoever waits for the end; guards what follows after start()
  std::optional<RawTerminal> terminal;
  std::unique_ptr<ConsoleInput> console;
  std::thread reset_thread;

  struct Making;
  bool is_made = false;           // before start(), as the next
  std::optional<Error> not_made;  // why not, since await_made()
  std::unique_ptr<Making> making; // until await_made(); uses all of the above: ends before they do
};

} // namespace stopvisor::vmm
