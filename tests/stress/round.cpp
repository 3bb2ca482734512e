// SPDX-License-Identifier: Apache-2.0
#include "tests/stress/round.h"

#include <array>
#include <functional>
#include <utility>

namespace stopvisor::stress {
namespace {

constexpr std::array kCpuCounts{1U, 2U, 3U, 4U, 8U, 16U};

const char* name(probe::CpuPhase phase) {
  switch (phase) {
  case probe::CpuPhase::kOffline:
    return "offline";
  case probe::CpuPhase::kStarting:
    return "starting";
  case probe::CpuPhase::kRunning:
    return "running";
  case probe::CpuPhase::kPoweredOff:
    return "powered off";
  }
  return "unknown";
}

} // namespace

Round::Round(uint64_t seed, bool tears, Journal& journal)
    : random_(seed), journal_(journal), tears_(tears), cpus_(kCpuCounts[random_.below(kCpuCounts.size())]),
      end_(static_cast<End>(random_.below(4))), operations_(100 + random_.below(300)), nuisance_(random_.next()) {
  std::string scenarios = "ledger,code,io";
  if (random_.one_in(2))
    scenarios += ",gap";
  if (random_.one_in(2))
    scenarios += ",idle";
  if (random_.one_in(3))
    scenarios += ",dirty";
  config_.name = "stress";
  config_.cpus = cpus_;
  config_.max_cpus = random_.one_in(2) ? cpus_ : cpus_ + 1 + random_.below(4);
  config_.memory_bytes = 64ULL << 20;
  config_.backing = random_.one_in(3) ? vmm::MemoryBacking::kMemfd : vmm::MemoryBacking::kAnonymous;
  config_.cmdline = "timer_hz=250 dirty_mib=8 scenarios=" + scenarios;
  description_ = std::to_string(cpus_) + " of " + std::to_string(config_.max_cpus) + " vCPUs, " + scenarios +
                 (end_ == End::kInTheMiddle ? ", ended in the middle" : "");
}

bool Round::start() {
  auto vm = vmm::Vm::create(config_);
  if (!vm) {
    journal_.fail(vm.error().message());
    return false;
  }
  vm_ = std::move(*vm);
  target_ = std::make_unique<Target>(*vm_, journal_, tears_);
  if (random_.below(3) != 0)
    vm_->use_hooks(&nuisance_);
  const uint32_t clients = 3 + random_.below(2);
  for (uint32_t number = 1; number <= clients; ++number)
    clients_.push_back(std::make_unique<Client>(*target_, random_.next(), number));
  if (auto on = vm_->start(); !on) {
    journal_.fail(on.error().message());
    return false;
  }
  return true;
}

// The guest has no way to wake us: its memory is all it writes.
void Round::await(const char* what, const std::function<bool()>& reached) {
  journal_.doing(0, what);
  while (!reached()) {
    if (vm_->state() == vmm::VmState::kEnded) {
      journal_.fail(std::string(what) + ": the VM ended: " + vm_->wait_for_end().message);
      return;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void Round::work() {
  std::vector<std::thread> threads;
  threads.reserve(clients_.size());
  for (const auto& client : clients_)
    threads.emplace_back([&client, this] { client->run(operations_); });
  if (end_ == End::kInTheMiddle) {
    threads.front().join(); // the others go on, or nearly
    target_->note_end();
    vm_->request_end({vmm::EndKind::kRequested, ""});
  }
  journal_.doing(0, "waiting for the clients");
  for (std::thread& thread : threads)
    if (thread.joinable())
      thread.join();
}

void Round::check_at_the_end(RoundTotals& totals) {
  if (end_ == End::kInTheMiddle || journal_.failed())
    return;
  await("waiting for the guest to be up again", [&] {
    bool ready = false;
    const auto look = vm_->stops().run([&](stopper::StopContext&) {
      ready = target_->settled();
      return 0;
    });
    return !look || ready;
  });
  journal_.doing(0, "the last inspection");
  const auto last = vm_->stops().run([&](stopper::StopContext&) {
    target_->inspect();
    return 0;
  });
  if (!last)
    return journal_.fail(vm_->explain("last inspection", last.error()).message());
  totals.stops += last->sequence;
  if (vm_->stops().holds() != 0)
    journal_.fail("a hold is left");
  for (uint32_t cpu = 0; cpu < vm_->cpu_count(); ++cpu) {
    if (vm_->vcpu_status(cpu).presence != vmm::VcpuPresence::kOnline)
      continue;
    const uint64_t before = target_->probe().cpu(cpu).slices;
    await("waiting for the guest to go on", [&] { return target_->probe().cpu(cpu).slices != before; });
    const probe::CpuResults one = target_->probe().cpu(cpu);
    totals.ledger_reads += one.ledger_reads;
    totals.io_accesses += one.io_port_writes + one.io_port_reads + one.io_mmio_writes + one.io_mmio_reads;
    totals.mails += one.mail_seen;
  }
}

void Round::end() {
  journal_.doing(0, "the end of the VM");
  vmm::EndKind expected = vmm::EndKind::kRequested;
  switch (journal_.failed() ? End::kDestroyed : end_) {
  case End::kButton:
    if (auto pressed = vm_->press_power_button(); !pressed)
      journal_.fail(pressed.error().message());
    expected = vmm::EndKind::kPowerOff;
    break;
  case End::kRequest:
    vm_->request_end({vmm::EndKind::kRequested, ""});
    break;
  case End::kInTheMiddle:
    break;
  case End::kDestroyed:
    return;
  }
  if (const vmm::VmEnd how = vm_->wait_for_end(); how.kind != expected)
    journal_.fail("the VM ended in another way than it should: " + how.message);
}

RoundTotals Round::run() {
  RoundTotals totals;
  journal_.doing(0, "the start of the VM");
  if (!start())
    return totals;
  await("waiting for the guest to start",
        [&] { return target_->probe().is_up() && target_->probe().cpus_running() == cpus_; });
  if (!journal_.failed()) {
    work();
    check_at_the_end(totals);
  }
  end();
  totals.resets = vm_->resets();
  journal_.doing(0, "the VM's destruction");
  vm_.reset();
  totals.delays = nuisance_.delays.load(std::memory_order_relaxed); // all threads are joined
  totals.drops = nuisance_.drops.load(std::memory_order_relaxed);
  return totals;
}

std::string Round::state() const {
  std::string text;
  for (uint32_t thread = 0; thread < Journal::kThreads; ++thread)
    if (const char* const what = journal_.doing(thread); what != nullptr)
      text += (thread == 0 ? "main thread" : "client " + std::to_string(thread)) + ": " + what + "\n";
  if (vm_ == nullptr)
    return text;
  text += "resets: " + std::to_string(vm_->resets()) + ", holds: " + std::to_string(vm_->stops().holds()) +
          ", waiting: " + std::to_string(vm_->stops().waiting()) + "\n";
  for (uint32_t cpu = 0; cpu < vm_->cpu_count(); ++cpu) {
    const vmm::VcpuStatus status = vm_->vcpu_status(cpu);
    const probe::CpuResults guest = target_->probe().cpu(cpu);
    text += "vCPU " + std::to_string(cpu) +
            (status.presence == vmm::VcpuPresence::kOnline    ? ""
             : status.presence == vmm::VcpuPresence::kLeaving ? ", asked to leave"
                                                              : ", offline") +
            ": thread " + std::to_string(status.thread_id) + ", " + std::to_string(status.exits) +
            " exits, the last " + status.last_exit + "; in the guest " +
            name(static_cast<probe::CpuPhase>(guest.phase)) + ", " + std::to_string(guest.slices) +
            " slices, started " + std::to_string(guest.starts) + " times\n";
  }
  return text;
}

} // namespace stopvisor::stress
