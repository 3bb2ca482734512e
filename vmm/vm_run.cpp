// SPDX-License-Identifier: Apache-2.0
// A VM's threads: how they are started, and how everything ends.
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <system_error>
#include <utility>

#include "guest/probe_abi.h"
#include "vmm/vm_parts.h"

namespace stopvisor::vmm {

std::expected<void, Error> Vm::Parts::start() {
  if (life.ending())
    return std::unexpected(Error{"start VM", config.name, "it was ended already", Status::kFailed});
  if (auto done = check_made("start VM"); !done)
    return done;
  if (auto there = kvm.await_pit(); !there)
    return there;
  for (uint32_t cpu = 0; cpu < config.cpus; ++cpu)
    if (auto made = starts_offline.test(cpu) ? vcpus[cpu].thread.start_offline() : vcpus[cpu].thread.start(); !made)
      return made;
  for (const auto& worker : workers)
    if (auto made = worker->start(); !made)
      return made;
  try {
    reset_thread = std::thread([this] { serve_resets(); });
  } catch (const std::system_error& error) {
    return std::unexpected(Error{"start VM", config.name, error.code().message(), Status::kFailed});
  }
  if (auto made = start_console(); !made)
    return made;
  // Together: each takes a while to come up.
  for (uint32_t cpu = 0; cpu < config.cpus; ++cpu)
    vcpus[cpu].thread.await_start();
  for (const auto& worker : workers)
    worker->await_start();
  // Every thread exists and can be kicked: from here on they take part in stops. They wait at their gates, so that
  // a hold taken now comes before the first guest instruction.
  for (const auto& worker : workers)
    if (auto on = machine.unpark(worker->participant()); !on)
      return std::unexpected(explain("start VM", on.error()));
  for (uint32_t cpu = 0; cpu < config.cpus; ++cpu)
    if (starts_offline.test(cpu))
      continue;
    else if (auto on = machine.unpark(cpu); !on)
      return std::unexpected(explain("start VM", on.error()));
  if (life.ending())
    return std::unexpected(Error{"start VM", config.name, "it was ended already", Status::kFailed});
  if (config.start_held)
    if (auto held = stops.acquire_hold(); !held)
      return std::unexpected(explain("start VM", held.error()));
  if (output && !config.start_held) // else with the first byte: a guest that comes by migration may not run here
    output->empty_file();
  started.store(true, std::memory_order_release); // pairs with Vm::state()
  for (const auto& worker : workers)
    worker->open_gate();
  for (uint32_t cpu = 0; cpu < config.cpus; ++cpu)
    vcpus[cpu].thread.open_gate();
  return {};
}

std::expected<void, Error> Vm::Parts::start_console() {
  if (config.serial != SerialTarget::kTerminal)
    return {};
  auto raw = RawTerminal::enter(STDIN_FILENO);
  if (!raw)
    return std::unexpected(raw.error());
  terminal.emplace(std::move(*raw));
  auto input =
      ConsoleInput::start(STDIN_FILENO, serial, [this] { life.end({EndKind::kRequested, ""}); }, &*terminal);
  if (!input)
    return std::unexpected(input.error());
  console = std::move(*input);
  return {};
}

// CONTEXT: any thread, vCPU threads included. Nothing here waits for a vCPU thread.
void Vm::Parts::let_out() noexcept {
  stops.close(); // holds are given back; who asks for a stop from now on is told that the VM has ended
  cpu_device.close();
  for (uint32_t cpu = 0, present = vcpus.present_at_end(); cpu < present; ++cpu)
    vcpus[cpu].thread.kick();
  for (const auto& worker : workers)
    worker->kick();
}

void Vm::Parts::join() {
  const std::lock_guard guard(join_lock);
  // A vCPU that is being added is let go first: it is published by then, or its thread has ended.
  change_lock.lock();
  for (uint32_t cpu = 0; cpu < vcpus.present(); ++cpu)
    vcpus[cpu].thread.join();
  change_lock.unlock();
  for (const auto& worker : workers)
    worker->join();
  if (reset_thread.joinable())
    reset_thread.join();
  console_ring.close();
  console.reset();
  terminal.reset();
}

std::string Vm::Parts::crash_note() const {
  decltype(probe::Results::crash) crash{};
  if (!config.kernel.empty() || !memory.read(Gpa{probe::kResultsGpa + offsetof(probe::Results, crash)},
                                             std::as_writable_bytes(std::span(&crash, 1))))
    return "";
  char text[160];
  std::snprintf(text, sizeof text,
                "  the guest says: vCPU %" PRIu32 ", vector %" PRIu32 ", error code 0x%" PRIx64 ", rip 0x%" PRIx64
                ", cr2 0x%" PRIx64 "\n",
                crash.cpu, crash.vector, crash.error_code, crash.rip, crash.cr2);
  return text;
}

Error Vm::Parts::explain(const std::string& operation, const stopper::StopError& error) const {
  Error result{operation, config.name, stopper::to_string(error.code), Status::kFailed};
  using enum stopper::StopErrc;
  if (error.code == kEnded && life.ending())
    if (const VmEnd end = life.reason(); end.kind == EndKind::kMigrated)
      result.reason = "its guest goes on at " + end.message;
  if (error.code == kDeadline || error.code == kBusy || error.code == kWorkInUse)
    result.status = Status::kBusy;
  const char* separator = ": ";
  error.stragglers.for_each([&](stopper::CpuId cpu) {
    if (!is_vcpu(cpu)) {
      result.reason += std::exchange(separator, ", ") + ("worker " + worker(cpu).name()) + " (thread " +
                       std::to_string(worker(cpu).thread_id()) + ")";
      return;
    }
    if (cpu >= vcpus.present())
      return;
    const VcpuThread& vcpu = vcpus[cpu].thread;
    const std::string last = vcpu.last_exit();
    result.reason += std::exchange(separator, ", ") + std::string("vCPU ") + std::to_string(cpu) + " (thread " +
                     std::to_string(vcpu.thread_id()) +
                     (last.empty() ? ", no exit yet)" : ", last exit " + last + ")");
  });
  return result;
}

} // namespace stopvisor::vmm
