// SPDX-License-Identifier: Apache-2.0
#include "tools/bench/bare_kick.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ranges>

#include "guest/probe_image.h"
#include "stopper/futex_platform.h"
#include "tools/probe/probe_view.h"
#include "vmm/boot/pvh.h"
#include "vmm/kick_signal.h"

namespace stopvisor::tools {
namespace {

using stopper::FutexPlatform;
using vmm::Error;

constexpr uint64_t kMemoryBytes = 64ULL << 20;

// Answers an access to a device: there is none.
void answer_with_ones(const vmm::KvmVcpu& vcpu) noexcept {
  kvm_run& run = vcpu.run();
  if (run.exit_reason == KVM_EXIT_IO && run.io.direction == KVM_EXIT_IO_IN)
    std::ranges::fill(vcpu.io_data(), std::byte{0xff});
  if (run.exit_reason == KVM_EXIT_MMIO && run.mmio.is_write == 0)
    std::ranges::fill(run.mmio.data, uint8_t{0xff});
}

} // namespace

std::expected<std::unique_ptr<BareKick>, Error> BareKick::boot(uint32_t cpus) {
  vmm::prepare_kick_signal();
  auto memory = vmm::GuestMemory::create(kMemoryBytes, vmm::MemoryBacking::kAnonymous);
  if (!memory)
    return std::unexpected(memory.error());
  std::unique_ptr<BareKick> bare(new BareKick(std::move(*memory)));
  if (auto ready = bare->set_up(cpus); !ready)
    return std::unexpected(ready.error());
  const ProbeView probe(bare->memory_);
  if (auto running = probe.await_running(cpus, 60, [] { return true; }); !running)
    return std::unexpected(running.error());
  return bare;
}

std::expected<void, Error> BareKick::set_up(uint32_t cpus) {
  auto system = vmm::KvmSystem::open();
  if (!system)
    return std::unexpected(system.error());
  system_ = std::make_unique<vmm::KvmSystem>(std::move(*system));
  auto vm = vmm::KvmVm::create(*system_, cpus, memory_);
  if (!vm)
    return std::unexpected(vm.error());
  vm_ = std::make_unique<vmm::KvmVm>(std::move(*vm));
  const std::string cmdline = "scenarios=gap cpus=" + std::to_string(cpus);
  auto entry = vmm::load_pvh(memory_, {probe::image(), {}, cmdline, {}}, "probe guest");
  if (!entry)
    return std::unexpected(entry.error());
  vcpus_.reserve(cpus);
  for (uint32_t cpu = 0; cpu < cpus; ++cpu) {
    auto vcpu = vmm::KvmVcpu::create(*system_, *vm_, cpu, cpus);
    if (!vcpu)
      return std::unexpected(vcpu.error());
    vcpus_.push_back(std::move(*vcpu));
  }
  if (auto set = vcpus_.front().set_entry(*entry); !set)
    return set;
  tids_ = std::vector<std::atomic<pid_t>>(cpus);
  for (uint32_t cpu = 0; cpu < cpus; ++cpu)
    threads_.emplace_back([this, cpu] { run(cpu); });
  for (std::atomic<pid_t>& tid : tids_)
    tid.wait(0, std::memory_order_acquire); // pairs with the store in run()
  return {};
}

BareKick::~BareKick() {
  ending_.store(true, std::memory_order_release); // pairs with the load in run(), as turn_ does
  for (std::atomic<pid_t>& tid : tids_)
    if (const pid_t id = tid.load(std::memory_order_acquire); id != 0)
      vmm::send_kick(id);
  let_go();
  for (std::thread& thread : threads_)
    thread.join();
}

void BareKick::run(uint32_t cpu) noexcept {
  const vmm::KvmVcpu& vcpu = vcpus_[cpu];
  vmm::accept_kicks(&vcpu.run());
  tids_[cpu].store(gettid(), std::memory_order_release);
  tids_[cpu].notify_all();
  while (!ending_.load(std::memory_order_acquire)) {
    const uint32_t turn = turn_.load(std::memory_order_acquire); // pairs with let_go()
    if (const int error = vcpu.enter(); error != EINTR) {        // EAGAIN: INIT or SIPI came
      if (error == 0)
        answer_with_ones(vcpu);
      continue;
    }
    vcpu.set_immediate_exit(false);
    // acq_rel: the last one out has seen the others (it tells the waiter for all of them).
    if (out_.fetch_add(1, std::memory_order_acq_rel) + 1 == vcpus_.size()) {
      done_.store(1, std::memory_order_release); // pairs with kick_all()
      FutexPlatform::wake_all(done_);
    }
    while (turn_.load(std::memory_order_acquire) == turn && !ending_.load(std::memory_order_acquire))
      FutexPlatform::wait(turn_, turn, stopper::kForever);
  }
  vmm::accept_kicks(nullptr);
}

int64_t BareKick::kick_all() {
  const auto begin = stopper::Clock::now();
  for (std::atomic<pid_t>& tid : tids_)
    vmm::send_kick(tid.load(std::memory_order_relaxed)); // set before boot() returned
  while (done_.load(std::memory_order_acquire) == 0)
    FutexPlatform::wait(done_, 0, stopper::kForever);
  return (stopper::Clock::now() - begin).count();
}

void BareKick::let_go() {
  out_.store(0, std::memory_order_relaxed);  // published by turn_
  done_.store(0, std::memory_order_relaxed); // the same
  turn_.fetch_add(1, std::memory_order_release);
  FutexPlatform::wake_all(turn_);
}

} // namespace stopvisor::tools
