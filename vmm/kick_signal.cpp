// SPDX-License-Identifier: Apache-2.0
#include "vmm/kick_signal.h"

#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

namespace stopvisor::vmm {
namespace {

// The run page of this vCPU thread. Read by the handler on the same thread only.
constinit thread_local std::atomic<kvm_run*> t_run{nullptr};

int kick_signal() noexcept {
  return SIGRTMIN;
} // the C library's first free one; not a constant

void on_kick(int /*number*/) {
  // relaxed: written by this very thread; a handler sees all that its thread did before.
  kvm_run* const run = t_run.load(std::memory_order_relaxed);
  if (run != nullptr)
    std::atomic_ref(run->immediate_exit).store(1, std::memory_order_relaxed); // read by the kernel on this thread
}

sigset_t only_kick() noexcept {
  sigset_t set;
  ::sigemptyset(&set);
  ::sigaddset(&set, kick_signal());
  return set;
}

} // namespace

void prepare_kick_signal() noexcept {
  // Idempotent, so that several VMs in one process need not agree who is first.
  struct sigaction action{};
  action.sa_handler = on_kick;
  action.sa_flags = 0; // no SA_RESTART: KVM_RUN must come back
  ::sigfillset(&action.sa_mask);
  ::sigaction(kick_signal(), &action, nullptr);
  const sigset_t set = only_kick();
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

void accept_kicks(kvm_run* run) noexcept {
  const sigset_t set = only_kick();
  if (run == nullptr)
    ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
  t_run.store(run, std::memory_order_relaxed); // read on this thread only
  if (run != nullptr)
    ::pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

void send_kick(pid_t tid) noexcept {
  // ESRCH: it has ended. EAGAIN: the queue of real-time signals is full (RLIMIT_SIGPENDING), which means that the
  // thread has kicks pending already, or that the stopper kicks again a little later.
  (void)::syscall(SYS_tgkill, ::getpid(), tid, kick_signal());
}

KickAtTheDoor::KickAtTheDoor() noexcept {
  const sigset_t set = only_kick();
  ::pthread_sigmask(SIG_BLOCK, &set, &before_);
  if (::syscall(SYS_tgkill, ::getpid(), ::gettid(), kick_signal()) != 0)
    error_ = errno;
}

// Real-time signals are counted: one of several that are pending is as good as another.
KickAtTheDoor::~KickAtTheDoor() {
  const sigset_t set = only_kick();
  const timespec at_once{};
  if (error_ == 0)
    while (::sigtimedwait(&set, nullptr, &at_once) < 0 && errno == EINTR) {
    }
  ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

KickAtTheDoor::Mask KickAtTheDoor::others() noexcept {
  const uint64_t set = ~(uint64_t{1} << (kick_signal() - 1)); // the kernel's, of 64 signals
  Mask mask{sizeof(set)};
  std::memcpy(&mask[1], &set, sizeof(set));
  return mask;
}

} // namespace stopvisor::vmm
