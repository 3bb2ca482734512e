// SPDX-License-Identifier: Apache-2.0
// The loop, and why no kick is lost in it.
//
//   somebody else                       this thread
//   -------------                       -----------
//   Q  queue work (or ending := true)   C  immediate_exit := 0
//   S  signal this thread               L  look: work? ending?     yes: serve it, go back to C
//                                       E  KVM_RUN                 returns at once where immediate_exit is 1
//
// The handler sets immediate_exit on this thread, so that the signal lands at one point of this thread's program
// order, and Q has happened before S:
//   S lands before C    C wipes the flag, but L comes later and sees Q
//   S lands in C .. L   L may or may not see Q; the flag stays set in any case, and E returns at once
//   S lands in L .. E   the flag is set: E returns at once
//   S lands in E        KVM_RUN returns EINTR
// Were C and L the other way round, a signal between them would be wiped out with the work unseen, and the guest
// would run on. Were the flag written by the signalling thread, C and L would need a fence between them: C's store
// could wait in this processor's store buffer past L's load, and wipe the other's flag with the work unseen (see
// docs/explanation/ordering.md). (kernel commit 460df4c1fc7c; KVM API, 5, immediate_exit)
#include "vmm/vcpu_thread.h"

#include <pthread.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <system_error>
#include <utility>

#include "vmm/exit_report.h"
#include "vmm/kick_signal.h"
#include "vmm/serialise.h"

namespace stopvisor::vmm {
namespace {

// Whose exit is being served on this thread.
constinit thread_local VcpuThread* t_current = nullptr;

} // namespace

VcpuThread::VcpuThread(uint32_t cpu, KvmVcpu vcpu, VcpuSurroundings around)
    : cpu_(cpu), vcpu_(std::move(vcpu)), around_(std::move(around)) {}

VcpuThread::~VcpuThread() {
  join();
}

std::expected<void, Error> VcpuThread::start() {
  try {
    thread_ = std::thread([this] { run(); });
  } catch (const std::system_error& error) {
    return std::unexpected(
        Error{"start VM", "vCPU " + std::to_string(cpu_), error.code().message(), Status::kFailed});
  }
  return {};
}

// acquire: pairs with run(). From here on a kick finds the thread; works are queued only after this (unpark), so
// that there is no work whose kick went nowhere.
void VcpuThread::await_start() const noexcept {
  stage_.wait(kNotStarted, std::memory_order_acquire);
}

void VcpuThread::join() {
  if (!thread_.joinable())
    return;
  await_start(); // where a start failed half way nobody did
  // A kick cannot be lost by the protocol, but a host may lose a signal (a debugger that swallows it). The stopper
  // kicks again for its works; here we do for the end of the VM.
  constexpr std::chrono::milliseconds kKickAgain{20};
  while (stage_.load(std::memory_order_acquire) != kLeft) { // pairs with run()
    stopper::FutexPlatform::wait(stage_, kRuns, stopper::Clock::now() + kKickAgain);
    if (stage_.load(std::memory_order_acquire) != kLeft) // the same
      kick();
  }
  thread_.join();
}

void VcpuThread::kick() noexcept {
  around_.hooks.at(VcpuPoint::kBeforeSignal, cpu_);
  // G1, acq_rel: all changes of gate_ are read-modify-writes, so that they have one order. Either this one comes
  // before the thread's own look at gate_, which then sees the work too; or after it, and the wait has a new value.
  if (!may_run(gate_.fetch_add(kOneKick, std::memory_order_acq_rel)))
    stopper::FutexPlatform::wake_all(gate_);
  priority_.note_urgent();
  const pid_t tid = priority_.thread_id();
  if (tid != 0 && !around_.hooks.drop_signal(cpu_))
    send_kick(tid);
  around_.hooks.at(VcpuPoint::kAfterSignal, cpu_);
}

void VcpuThread::open_gate() noexcept {
  gate_.fetch_or(kGateOpen, std::memory_order_acq_rel); // G1
  stopper::FutexPlatform::wake_all(gate_);
}

// Waits until guest code may run, taking part in stops meanwhile. A kick raises gate_, so that it is seen here
// without a signal; signals are taken too, and do nothing but end the futex wait.
void VcpuThread::wait_at_gate() noexcept {
  for (;;) {
    const uint32_t seen = gate_.load(std::memory_order_acquire); // G1: before the look at the queue
    if (around_.machine.should_run(cpu_)) {
      run_works();
      continue;
    }
    if (Order* const order = order_.load(std::memory_order_acquire); order != nullptr) { // O1
      obey(*order);
      continue;
    }
    if (may_run(seen) || told_to_leave_ || around_.life.ending())
      return;
    stopper::FutexPlatform::wait(gate_, seen, stopper::kForever);
  }
}

void VcpuThread::run() noexcept {
  char name[16];
  std::snprintf(name, sizeof name, "vcpu/%u", cpu_);
  ::pthread_setname_np(::pthread_self(), name);
  t_current = this;
  around_.machine.bind_thread(cpu_);
  accept_kicks(&vcpu_.run());
  priority_.adopt_this_thread();
  stage_.store(kRuns, std::memory_order_release); // pairs with await_start()
  stage_.notify_all();

  loop();

  // Out for good. Works that were queued up to here are executed first, since their stop waits for us; from then on
  // a stop does without this vCPU. No kick is needed any more.
  if (!told_to_leave_) // an offline one is parked, and may be started again
    around_.machine.retire(cpu_);
  if (Order* const order = order_.exchange(&no_more_orders_, std::memory_order_acq_rel); order != nullptr) // O1
    finish(*order);
  priority_.leave(); // a kick may still send a last signal: see send_kick()
  accept_kicks(nullptr);
  around_.machine.unbind_thread();
  t_current = nullptr;
  stage_.store(kLeft, std::memory_order_release); // pairs with join()
  stopper::FutexPlatform::wake_all(stage_);
}

void VcpuThread::loop() noexcept {
  while (!around_.life.ending() && !told_to_leave_) {
    vcpu_.set_immediate_exit(false); // C
    // Keeps the compiler from moving C below L; the CPU runs a handler between two of its own instructions. This is
    // about one thread and its handler, so a signal fence: nothing between threads rests on it.
    std::atomic_signal_fence(std::memory_order_seq_cst);
    at(VcpuPoint::kAfterClear);
    if (around_.machine.should_run(cpu_)) { // L
      run_works();
      continue;
    }
    if (around_.life.ending()) // L
      return;
    // relaxed: only this thread shuts the gate or goes offline, and wait_at_gate() looks again.
    if (!may_run(gate_.load(std::memory_order_relaxed))) {
      wait_at_gate();
      continue; // a signal may have set immediate_exit meanwhile: once round
    }
    at(VcpuPoint::kAfterCheck);
    priority_.settle(); // a kick that it misses ends the KVM_RUN to come
    enter_guest();      // E
    at(VcpuPoint::kBeforeClear);
  }
}

void VcpuThread::enter_guest() noexcept {
  if (const uint64_t written = around_.written.count(); written != written_) { // it may have been code
    written_ = written;
    serialise_this_processor();
  }
  incomplete_ = false; // KVM finishes the instruction as it enters
  const int error = vcpu_.enter(around_.register_wishes.any());
  const uint32_t reason = error == 0 ? vcpu_.run().exit_reason : uint32_t{KVM_EXIT_INTR};
  activity_ = reason;
  // relaxed, all three: counters to look at, which publish nothing.
  last_exit_.store(reason, std::memory_order_relaxed);
  exits_.store(exits_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  noted_out_ = around_.machine.should_run(cpu_);
  if (noted_out_) {
    around_.machine.note_out(cpu_, reason);
    priority_.note_urgent(); // where the kick's mark went with a settle() before the work was queued
  }
  at(VcpuPoint::kOutOfRun);
  // EINTR: kicked. EAGAIN: a vCPU that waits for INIT/SIPI has been woken (KVM API, 4.10).
  if (error == EINTR || error == EAGAIN)
    return;
  if (error != 0)
    return fail(EndKind::kVmmError, std::string("KVM_RUN failed: ") + std::strerror(error));
  serve_exit();
  serve_request();
}

// Everything queued for this vCPU, the length of a stop included.
void VcpuThread::run_works() noexcept {
  finish_instruction(); // before the stop is acknowledged: registers and devices are one state then
  serve_request();
  if (!noted_out_)
    around_.machine.note_out(cpu_, activity_);
  noted_out_ = false;
  if (around_.register_wishes.any())
    vcpu_.note_registers(); // by all vCPUs at once, instead of one by one once all are held
  around_.machine.run_works(cpu_);
  vcpu_.note_guest_paused();
}

void VcpuThread::request_from_current(GuestRequest request) noexcept {
  if (t_current != nullptr)
    t_current->request_ = request;
}

std::string VcpuThread::last_exit() const {
  const uint32_t reason = last_exit_.load(std::memory_order_relaxed); // a value by itself
  return reason == kNoExit ? "" : exit_name(reason);
}

} // namespace stopvisor::vmm
