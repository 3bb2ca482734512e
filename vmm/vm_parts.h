// SPDX-License-Identifier: Apache-2.0
// What a Vm is made of, in the order in which the parts depend on each other. Private to vm*.cpp.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "stopper/native.h"
#include "vmm/bus.h"
#include "vmm/console_input.h"
#include "vmm/device_worker.h"
#include "vmm/devices/cpu_device.h"
#include "vmm/devices/doorbell.h"
#include "vmm/devices/power.h"
#include "vmm/devices/reset_port.h"
#include "vmm/devices/serial16550.h"
#include "vmm/kvm_system.h"
#include "vmm/kvm_vm.h"
#include "vmm/serial_output.h"
#include "vmm/terminal.h"
#include "vmm/test_hooks.h"
#include "vmm/vcpus.h"
#include "vmm/vm.h"
#include "vmm/vm_life.h"

namespace stopvisor::vmm {

struct Vm::Parts final : private stopper::Kick {
  Parts(VmConfig its_config, KvmSystem its_system, GuestMemory its_memory, KvmVm its_kvm,
        std::unique_ptr<SerialOutput> its_output);
  ~Parts() override;
  Parts(const Parts&) = delete;
  Parts& operator=(const Parts&) = delete;

  [[nodiscard]] std::expected<void, Error> attach_devices();
  [[nodiscard]] std::expected<void, Error> make_vcpus();
  [[nodiscard]] std::expected<std::unique_ptr<Vcpu>, Error> make_vcpu(uint32_t cpu);
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

  // What the probe guest says of its crash; empty for other guests.
  [[nodiscard]] std::string crash_note() const;
  [[nodiscard]] Error explain(const std::string& operation, const stopper::StopError& error) const;

  // stopper::Kick
  void kick(stopper::CpuId cpu) noexcept override {
    is_vcpu(cpu) ? vcpus[cpu].thread.kick() : doorbell_worker.kick();
  }
  Lift lift(stopper::CpuId cpu) noexcept override {
    if (!lifts_allowed.load(std::memory_order_relaxed)) // a switch by itself
      return Lift::kNotNeeded;
    return is_vcpu(cpu) ? vcpus[cpu].thread.lift() : doorbell_worker.lift();
  }
  void restore(stopper::CpuId cpu) noexcept override {
    is_vcpu(cpu) ? vcpus[cpu].thread.restore() : doorbell_worker.restore();
  }
  // Else a device worker; there is one.
  [[nodiscard]] bool is_vcpu(stopper::CpuId cpu) const noexcept { return cpu < machine.first_worker(); }
  // The VM ends: everybody is let go, and looks.
  void let_out() noexcept;

  const VmConfig config;
  const KvmSystem system;
  GuestMemory memory;
  const KvmVm kvm;
  VcpuHookPoint hooks;

  const std::unique_ptr<SerialOutput> output; // null: nobody reads the serial port
  Serial16550 serial;
  PowerDevice power;
  Doorbell doorbell;
  CpuDevice cpu_device;
  KeyboardResetPort keyboard_reset;
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
  DeviceWorker doorbell_worker{"doorbell", machine.first_worker(), doorbell, {machine, hooks, life}};

  std::atomic<bool> started{false};
  std::atomic<bool> lifts_allowed{true};
  std::atomic<uint64_t> resets{0};
  std::mutex join_lock; // taken by whoever waits for the end; guards what follows after start()
  std::optional<RawTerminal> terminal;
  std::unique_ptr<ConsoleInput> console;
  std::thread reset_thread;
};

} // namespace stopvisor::vmm
