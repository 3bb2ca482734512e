// SPDX-License-Identifier: Apache-2.0
// vCPUs that come and go while the VM runs: added, taken offline, brought online again.
//
// The guest is asked through the CPU device and never waited for with a lock on the machine. Only the change
// itself, a stop's length, is made under the hotplug lock's write side: nobody is gathering or holding a stop then.
// The vCPU does it on its own thread, as in the kernel a CPU does that comes up or goes down:
//
//   add, online   prepare the vCPU's state -> stop_machine_from_inactive_cpu(): align its TSC while the others are
//                 held -> unpark -> tell the guest
//   offline       the guest is asked, and gives it up -> stop_one_cpu(): park
#include <algorithm>
#include <string>
#include <utility>

#include "vmm/tsc.h"
#include "vmm/vm_parts.h"

namespace stopvisor::vmm {
namespace {

using stopper::TimePoint;

// How long a change may keep the hotplug lock: whoever wants a stop meanwhile waits for it, and could not tell whom
// it waits for. A vCPU that is stuck is named sooner so, whatever the caller's patience.
constexpr std::chrono::seconds kLongestChange{2};

TimePoint bounded(TimePoint deadline) {
  return std::min(deadline, stopper::Clock::now() + kLongestChange);
}

Error about(const Vm::Parts& parts, const char* operation, std::string reason, Status status) {
  return Error{operation, parts.config.name, std::move(reason), status};
}

std::string name_of(uint32_t cpu) {
  return "vCPU " + std::to_string(cpu);
}

// The write side of the hotplug lock for a scope.
class HotplugGuard {
public:
  HotplugGuard(stopper::StopMachine& machine, TimePoint deadline)
      : machine_(machine), taken_(machine.hotplug().write_lock_until(deadline)) {}
  ~HotplugGuard() {
    if (taken_)
      machine_.hotplug().write_unlock();
  }
  HotplugGuard(const HotplugGuard&) = delete;
  HotplugGuard& operator=(const HotplugGuard&) = delete;
  explicit operator bool() const noexcept { return taken_; }

private:
  stopper::StopMachine& machine_;
  const bool taken_;
};

// One change of the set of vCPUs at a time.
class ChangeGuard {
public:
  ChangeGuard(stopper::BasicLock<stopper::FutexPlatform>& lock, TimePoint deadline)
      : lock_(lock), taken_(lock.lock_until(deadline)) {}
  ~ChangeGuard() NO_THREAD_SAFETY_ANALYSIS {
    if (taken_)
      lock_.unlock();
  }
  ChangeGuard(const ChangeGuard&) = delete;
  ChangeGuard& operator=(const ChangeGuard&) = delete;
  explicit operator bool() const noexcept { return taken_; }

private:
  stopper::BasicLock<stopper::FutexPlatform>& lock_;
  const bool taken_;
};

Error another_change(const Vm::Parts& parts, const char* operation) {
  return about(parts, operation, "another change of its vCPUs is going on", Status::kBusy);
}

std::string held_hint(Vm::Parts& parts) {
  return parts.stops.holds() != 0 ? "; the VM is held" : "";
}

} // namespace

std::expected<void, Error> Vm::Parts::check_runs(const char* operation) const {
  if (machine.thread_marked())
    return std::unexpected(about(*this, operation, to_string(stopper::StopErrc::kWouldDeadlock), Status::kFailed));
  // acquire: pairs with start(). From here on vCPU threads exist.
  if (life.ending() || !started.load(std::memory_order_acquire))
    return std::unexpected(about(*this, operation, "the VM is not running", Status::kFailed));
  return {};
}

std::expected<void, Error> Vm::Parts::check_cpu(const char* operation, uint32_t cpu) const {
  if (cpu < vcpus.present())
    return {};
  return std::unexpected(about(*this, operation,
                               "no " + name_of(cpu) + ": it has 0 to " + std::to_string(vcpus.present() - 1),
                               Status::kUsage));
}

// CONTEXT: the thread of vCPU `cpu`, which is offline; under the change lock.
std::expected<void, Error> Vm::Parts::join_machine(const char* operation, uint32_t cpu, Vcpu& vcpu,
                                                   TimePoint deadline) {
  const HotplugGuard guard(machine, deadline);
  if (!guard)
    return std::unexpected(about(*this, operation, "deadline passed" + held_hint(*this), Status::kBusy));
  if (auto done = vcpu.initial.restore(vcpu.thread.vcpu()); !done)
    return done;
  std::expected<void, Error> aligned;
  const auto align = [&](stopper::StopContext&) {
    KvmTscAccess newcomer(vcpu.thread.vcpu());
    aligned = align_tsc(KvmTscAccess(vcpus[0].thread.vcpu()), newcomer);
    return 0;
  };
  const stopper::CpuMask itself = stopper::CpuMask::of(cpu);
  const auto stop = machine.stop_machine_from_inactive_cpu(cpu, align, &itself, {.deadline = bounded(deadline)});
  if (!stop)
    return std::unexpected(explain(operation, stop.error()));
  if (!aligned)
    return aligned;
  if (cpu == vcpus.present())
    vcpus.publish(); // before it can be unparked, kicked and run
  if (auto on = machine.unpark_cpuslocked(cpu); !on)
    return std::unexpected(explain(operation, on.error()));
  return {};
}

// RETURNS: kBusy where the deadline passed, kFailed where the VM ends or KVM refuses; the vCPU is offline then.
std::expected<void, Error> Vm::Parts::bring_online(const char* operation, uint32_t cpu, Vcpu& vcpu,
                                                   TimePoint deadline) {
  // Where the thread leaves before it comes to it.
  std::expected<void, Error> result = std::unexpected(explain(operation, {.code = stopper::StopErrc::kEnded}));
  if (!vcpu.thread.come_online([&] {
        result = join_machine(operation, cpu, vcpu, deadline);
        return result.has_value();
      }))
    return result;
  cpu_device.add(cpu, true);
  return {};
}

std::expected<std::unique_ptr<Vcpu>, Error> Vm::Parts::make_vcpu(uint32_t cpu) {
  auto vcpu = KvmVcpu::open(system, kvm, cpu);
  if (!vcpu)
    return std::unexpected(vcpu.error());
  return make_vcpu(cpu, *std::move(vcpu));
}

std::expected<std::unique_ptr<Vcpu>, Error> Vm::Parts::make_vcpu(uint32_t cpu, KvmVcpu vcpu) {
  if (auto done = vcpu.set_up(system, cpu, config.max_cpus); !done)
    return std::unexpected(done.error());
  auto initial = VcpuState::save(vcpu, system);
  if (!initial)
    return std::unexpected(initial.error());
  return std::make_unique<Vcpu>(cpu, std::move(vcpu), std::move(*initial),
                                VcpuSurroundings{machine, ports, mmio, memory, hooks, life, written_pages,
                                                 register_wishes, [this] { return crash_note(); }});
}

stopper::CpuMask Vm::Parts::wanted_cpus() const {
  stopper::CpuMask mask;
  for (uint32_t cpu = 0; cpu < vcpus.present(); ++cpu)
    if (cpu_device.wanted(cpu))
      mask.set(cpu);
  return mask;
}

std::expected<uint32_t, Error> Vm::add_cpu(std::chrono::steady_clock::time_point deadline) {
  static constexpr const char* kOperation = "add vCPU";
  Parts& parts = *parts_;
  const ChangeGuard guard(parts.change_lock, deadline);
  if (!guard)
    return std::unexpected(another_change(parts, kOperation));
  if (auto runs = parts.check_runs(kOperation); !runs)
    return std::unexpected(runs.error());
  const uint32_t cpu = parts.vcpus.present();
  if (cpu == parts.vcpus.possible())
    return std::unexpected(about(
        parts, kOperation, "it has all the " + std::to_string(cpu) + " vCPUs it was started for (run --max-cpus)",
        Status::kRefused));
  std::unique_ptr<Vcpu>& next = parts.vcpus.next();
  if (next == nullptr) {
    auto made = parts.make_vcpu(cpu);
    if (!made)
      return std::unexpected(made.error());
    next = std::move(*made);
  }
  if (auto started = next->thread.start_offline(); !started)
    return std::unexpected(started.error());
  next->thread.await_start();
  auto online = parts.bring_online(kOperation, cpu, *next, deadline);
  if (online)
    return cpu;
  if (cpu == parts.vcpus.present())
    next->thread.end_offline(); // what KVM made stays for the next attempt
  return std::unexpected(online.error());
}

std::expected<void, Error> Vm::online_cpu(uint32_t cpu, std::chrono::steady_clock::time_point deadline) {
  static constexpr const char* kOperation = "online vCPU";
  Parts& parts = *parts_;
  const ChangeGuard guard(parts.change_lock, deadline);
  if (!guard)
    return std::unexpected(another_change(parts, kOperation));
  if (auto runs = parts.check_runs(kOperation); !runs)
    return runs;
  if (auto known = parts.check_cpu(kOperation, cpu); !known)
    return known;
  if (!parts.vcpus[cpu].thread.offline())
    return std::unexpected(about(parts, kOperation, name_of(cpu) + " is online", Status::kRefused));
  return parts.bring_online(kOperation, cpu, parts.vcpus[cpu], deadline);
}

// RETURNS: whether the guest has given the vCPU up; where it has not, the vCPU is not wanted all the same.
std::expected<bool, Error> Vm::Parts::ask_to_give_up(const char* operation, uint32_t cpu, TimePoint deadline) {
  cpu_device.set_wanted(cpu, false);
  switch (cpu_device.await_gone(cpu, deadline)) {
  case CpuDevice::Answer::kGone:
    return true;
  case CpuDevice::Answer::kNone:
    return false;
  case CpuDevice::Answer::kClosed:
    break;
  }
  return std::unexpected(explain(operation, {.code = stopper::StopErrc::kEnded}));
}

std::expected<void, Error> Vm::Parts::take_offline(const char* operation, uint32_t cpu, TimePoint deadline) {
  const HotplugGuard guard(machine, deadline);
  if (!guard)
    return std::unexpected(about(*this, operation, "deadline passed" + held_hint(*this), Status::kBusy));
  const auto park = [&](stopper::StopContext&) {
    vcpus[cpu].thread.go_offline();
    return 0;
  };
  if (auto parked = machine.stop_one_cpu(cpu, park, {.deadline = bounded(deadline)}); !parked)
    return std::unexpected(explain(operation, parked.error()));
  return {};
}

std::expected<bool, Error> Vm::offline_cpu(uint32_t cpu, std::chrono::steady_clock::time_point deadline,
                                           bool force) {
  static constexpr const char* kOperation = "offline vCPU";
  Parts& parts = *parts_;
  const auto asked = stopper::Clock::now();
  const ChangeGuard guard(parts.change_lock, deadline);
  if (!guard)
    return std::unexpected(another_change(parts, kOperation));
  if (auto runs = parts.check_runs(kOperation); !runs)
    return std::unexpected(runs.error());
  if (auto known = parts.check_cpu(kOperation, cpu); !known)
    return std::unexpected(known.error());
  if (cpu == 0)
    return std::unexpected(about(parts, kOperation, "vCPU 0 started the guest, and stays", Status::kRefused));
  if (parts.vcpus[cpu].thread.offline())
    return std::unexpected(about(parts, kOperation, name_of(cpu) + " is offline", Status::kRefused));

  // With force the guest has half of the time, and taking the vCPU away the rest.
  const auto gone = parts.ask_to_give_up(kOperation, cpu, force ? asked + (deadline - asked) / 2 : deadline);
  if (!gone)
    return std::unexpected(gone.error());
  std::expected<void, Error> taken;
  if (*gone || force)
    taken = parts.take_offline(kOperation, cpu, deadline);
  else
    taken = std::unexpected(parts.not_given_up(kOperation, cpu, deadline - asked));
  if (taken)
    return !*gone;
  parts.cpu_device.set_wanted(cpu, true); // a guest that has given it up meanwhile starts it again
  return std::unexpected(taken.error());
}

Error Vm::Parts::not_given_up(const char* operation, uint32_t cpu, stopper::Nanoseconds within) {
  const auto ms = std::chrono::ceil<std::chrono::milliseconds>(within).count();
  return about(*this, operation,
               "the guest did not give up " + name_of(cpu) + " within " + std::to_string(ms) + " ms" +
                   (stops.holds() != 0 ? ": the VM is held" : "; --force takes it away all the same"),
               Status::kBusy);
}

} // namespace stopvisor::vmm
