// SPDX-License-Identifier: Apache-2.0
#include "vmm/vm.h"

#include <utility>

#include "vmm/tsc.h"
#include "vmm/vm_parts.h"

namespace stopvisor::vmm {

Vm::Vm(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}

Vm::~Vm() {
  request_end({EndKind::kRequested, ""});
  parts_->join();
}

std::expected<void, Error> Vm::start() {
  auto started = parts_->start();
  if (!started) {
    request_end({EndKind::kVmmError, started.error().message() + "\n"});
    parts_->join();
  }
  return started;
}

VmEnd Vm::wait_for_end() {
  parts_->life.await_end();
  parts_->join();
  return parts_->life.reason();
}

void Vm::request_end(VmEnd end) noexcept {
  parts_->life.end(std::move(end));
}

std::expected<void, Error> Vm::press_power_button() {
  if (const VmState now = state(); now == VmState::kCreated || now == VmState::kEnded)
    return std::unexpected(Error{"shutdown", config().name, "the VM is not running", Status::kFailed});
  parts_->power.press();
  return {};
}

const VmConfig& Vm::config() const noexcept {
  return parts_->config;
}

VmState Vm::state() const noexcept {
  if (parts_->life.ending())
    return VmState::kEnded;
  if (!parts_->started.load(std::memory_order_acquire)) // pairs with Parts::start()
    return VmState::kCreated;
  return parts_->stops.holds() != 0 ? VmState::kHeld : VmState::kRunning;
}

uint32_t Vm::cpu_count() const noexcept {
  return parts_->vcpus.present();
}

VcpuStatus Vm::vcpu_status(uint32_t cpu) const {
  if (cpu >= parts_->vcpus.present())
    return {};
  const VcpuThread& vcpu = parts_->vcpus[cpu].thread;
  const VcpuPresence presence = vcpu.offline()                   ? VcpuPresence::kOffline
                                : parts_->cpu_device.wanted(cpu) ? VcpuPresence::kOnline
                                                                 : VcpuPresence::kLeaving;
  return {cpu, presence, vcpu.thread_id(), vcpu.exits(), vcpu.last_exit()};
}

std::vector<WorkerStatus> Vm::worker_status() const {
  const DeviceWorker& worker = parts_->doorbell_worker;
  return {{worker.name(), worker.participant(), worker.thread_id(), worker.jobs_done()}};
}

uint64_t Vm::resets() const noexcept {
  return parts_->resets.load(std::memory_order_relaxed);
} // a counter by itself

DoorbellCounts Vm::doorbell_counts() const {
  return parts_->doorbell.total();
}
DoorbellCounts Vm::doorbell_counts(uint32_t cpu) const {
  return parts_->doorbell.counts(cpu);
}

const GuestMemory& Vm::memory() const noexcept {
  return parts_->memory;
}
std::vector<std::byte> Vm::device_tree() const {
  const std::lock_guard guard(parts_->tree_lock);
  return parts_->device_tree;
}
stopper::StopService& Vm::stops() noexcept {
  return parts_->stops;
}
stopper::StopMachine& Vm::stop_machine() noexcept {
  return parts_->machine;
}

std::expected<Registers, Error> Vm::registers(uint32_t cpu) const {
  if (auto known = parts_->check_cpu("registers", cpu); !known)
    return std::unexpected(known.error());
  return parts_->vcpus[cpu].thread.vcpu().registers();
}

std::expected<uint64_t, Error> Vm::tsc(uint32_t cpu) const {
  if (auto known = parts_->check_cpu("registers", cpu); !known)
    return std::unexpected(known.error());
  return KvmTscAccess(parts_->vcpus[cpu].thread.vcpu()).msr(kMsrTsc);
}

Error Vm::explain(const std::string& operation, const stopper::StopError& error) const {
  return parts_->explain(operation, error);
}

void Vm::allow_lifts(bool allowed) noexcept {
  parts_->lifts_allowed.store(allowed, std::memory_order_relaxed); // a switch by itself
}

void Vm::use_hooks(VcpuHooks* hooks) noexcept {
  parts_->hooks.install(hooks);
}

} // namespace stopvisor::vmm
