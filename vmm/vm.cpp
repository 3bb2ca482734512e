// SPDX-License-Identifier: Apache-2.0
#include "vmm/vm.h"

#include <utility>

#include "vmm/console_session.h"
#include "vmm/tsc.h"
#include "vmm/vm_making.h"

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

std::expected<void, Error> Vm::await_made() {
  return parts_->await_made();
}

VmEnd Vm::wait_for_end() {
  parts_->life.await_end();
  parts_->join();
  return parts_->life.reason();
}

void Vm::request_end(VmEnd end) noexcept {
  parts_->life.end(std::move(end));
}

std::expected<void, Error> Vm::Parts::check_takes_keys() const {
  if (life.ending())
    return std::unexpected(explain("shutdown", {.code = stopper::StopErrc::kEnded}));
  if (!started.load(std::memory_order_acquire)) // pairs with start()
    return std::unexpected(Error{"shutdown", config.name, "the VM has not started yet", Status::kFailed});
  return {};
}

std::expected<void, Error> Vm::press_power_button() {
  if (auto runs = parts_->check_takes_keys(); !runs)
    return runs;
  // A guest has a driver for one of them: the probe guest for ours, others for ACPI's.
  parts_->power.press();
  parts_->acpi_power.press_button();
  return {};
}

std::expected<void, Error> Vm::press_ctrl_alt_del() {
  if (auto runs = parts_->check_takes_keys(); !runs)
    return runs;
  if (!parts_->keyboard.press_ctrl_alt_del())
    return std::unexpected(
        Error{"shutdown", config().name, "the guest does not read its keyboard", Status::kRefused});
  parts_->tell("Ctrl-Alt-Del was pressed");
  return {};
}

void Vm::tell_events_to(std::function<void(const std::string&)> listener) {
  parts_->listener = std::move(listener);
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
  std::vector<WorkerStatus> list;
  for (const auto& worker : parts_->workers)
    list.push_back({worker->name(), worker->participant(), worker->thread_id(), worker->jobs_done()});
  return list;
}

std::vector<DeviceStatus> Vm::device_status() const {
  std::vector<DeviceStatus> list;
  for (const auto& slot : parts_->slots)
    list.push_back(slot->status());
  return list;
}

std::vector<int> Vm::disk_images() const {
  std::vector<int> images;
  const auto add = [&images](const virtio::Device& device) {
    if (const int image = device.image(); image >= 0)
      images.push_back(image);
  };
  for (const auto& slot : parts_->slots)
    add(slot->device());
  if (parts_->making)
    for (const auto& device : parts_->making->devices)
      add(*device);
  return images;
}

uint64_t Vm::resets() const noexcept {
  return parts_->resets.load(std::memory_order_relaxed);
} // a counter by itself

std::string Vm::last_reset_by() const {
  const char* const by = parts_->reset_by.load(std::memory_order_relaxed); // a word by itself
  return resets() == 0 || by == nullptr ? "" : by;
}

bool Vm::panicked() const noexcept {
  return parts_->pvpanic.panicked();
}

uint64_t Vm::panics() const noexcept {
  return parts_->pvpanic.panics();
}

uint64_t Vm::ctrl_alt_dels() const noexcept {
  return parts_->keyboard.chords();
}

DoorbellCounts Vm::doorbell_counts() const {
  return parts_->doorbell.total();
}
DoorbellCounts Vm::doorbell_counts(uint32_t cpu) const {
  return parts_->doorbell.counts(cpu);
}

const GuestMemory& Vm::memory() const noexcept {
  return parts_->memory;
}
WrittenPages& Vm::written_pages() noexcept {
  return parts_->written_pages;
}
FreezePlace& Vm::freeze_place() noexcept {
  return parts_->freeze_place;
}
std::vector<std::byte> Vm::console_log() const {
  return parts_->console_ring.kept();
}

std::expected<void, Error> Vm::serve_console(int fd, std::span<const std::byte> early) {
  auto session = ConsoleSession::start(parts_->console_ring, parts_->serial);
  if (!session)
    return std::unexpected(session.error());
  (*session)->serve(fd, early);
  return {};
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

RegisterWishes& Vm::register_wishes() noexcept {
  return parts_->register_wishes;
}

std::expected<Registers, Error> Vm::registers(uint32_t cpu, bool with_activity) const {
  if (auto known = parts_->check_cpu("registers", cpu); !known)
    return std::unexpected(known.error());
  return parts_->vcpus[cpu].thread.vcpu().registers(with_activity);
}

std::expected<uint64_t, Error> Vm::tsc(uint32_t cpu) const {
  if (auto known = parts_->check_cpu("registers", cpu); !known)
    return std::unexpected(known.error());
  return KvmTscAccess(parts_->vcpus[cpu].thread.vcpu()).msr(kMsrTsc);
}

std::expected<std::vector<StateSection>, Error> Vm::save_state() {
  return parts_->save_state();
}
std::expected<void, Error> Vm::bring_needed(std::span<const StateSection> sections) {
  return parts_->bring_needed(sections);
}
std::expected<void, Error> Vm::restore_state(std::span<const StateSection> sections, RestoreChoices choices) {
  return parts_->restore_state(sections, choices);
}

void Vm::write_to_console(const std::string& line) noexcept {
  const bool terminal =
      config().serial == SerialTarget::kTerminal; // a file has what the guest says, and nothing else
  for (const char c : "\r\n[stopvisor: " + line + "]\r\n")
    if (terminal)
      parts_->console_ring.put(static_cast<std::byte>(c));
    else
      parts_->console_ring.keep(static_cast<std::byte>(c));
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
