// SPDX-License-Identifier: Apache-2.0
// One participant's stopper: an enabled flag, a lock and a FIFO of works (the kernel's struct cpu_stopper).
//
// Anybody queues; only the participant's own thread takes. While a stopper is disabled nothing is queued: the
// vCPU is offline, cannot run guest code, and whoever asks treats it as stopped already.
#pragma once

#include <cstdint>

#include "stopper/lock.h"
#include "stopper/work.h"

namespace stopvisor::stopper {

template <class P>
class BasicStopper {
public:
  using Work = BasicWork<P>;

  // RETURNS: false where the stopper is disabled; the work is then not queued. A work that is queued already
  // is not queued twice: the caller checks `Work` reuse first (in_use()).
  // CONTEXT: any thread; the caller kicks afterwards, outside the lock.
  [[nodiscard]] bool queue(Work& work) noexcept EXCLUDES(lock_) {
    const BasicLockGuard<P> guard(lock_);
    return queue_locked(work);
  }

  [[nodiscard]] bool queue_locked(Work& work) noexcept REQUIRES(lock_) {
    if (!enabled())
      return false;
    work.next_ = nullptr;
    work.queued_.store(1, std::memory_order_relaxed); // under the lock
    if (last_ != nullptr)
      last_->next_ = &work;
    else
      first_ = &work;
    last_ = &work;
    // release: pairs with should_run() (S1). Written before the kick, read by the participant after it cleared
    // immediate_exit: either it sees the work now, or the kick comes after the clearing and ends KVM_RUN.
    pending_.store(1, std::memory_order_release);
    return true;
  }

  // queue() that also tells whether the participant is at rest, and so need not be kicked: it cannot come to its
  // own work before it has been through this one. Not where other works are queued before it: they may begin at any
  // time.
  enum class Found : uint8_t { kDisabled, kBusy, kAtRest };
  [[nodiscard]] Found queue_or_catch(Work& work) noexcept EXCLUDES(lock_) {
    const BasicLockGuard<P> guard(lock_);
    const bool at_rest = at_rest_ && first_ == nullptr;
    if (!queue_locked(work))
      return Found::kDisabled;
    return at_rest ? Found::kAtRest : Found::kBusy;
  }

  // The participant touches nothing from here on until rise(). RETURNS: false where works are queued.
  // CONTEXT: its own thread, both.
  [[nodiscard]] bool rest() noexcept EXCLUDES(lock_) {
    const BasicLockGuard<P> guard(lock_);
    at_rest_ = first_ == nullptr;
    return at_rest_;
  }
  // From here on it is busy. What caught it before is queued, and seen by should_run().
  void rise() noexcept EXCLUDES(lock_) {
    const BasicLockGuard<P> guard(lock_);
    at_rest_ = false;
  }

  // cpu_stop_should_run(): whether anything is queued. CONTEXT: the participant's thread.
  [[nodiscard]] bool should_run() const noexcept { return pending_.load(std::memory_order_acquire) != 0; } // S1

  // Takes `work` back if its function has not begun. RETURNS: whether it was still queued.
  [[nodiscard]] bool cancel(Work& work) noexcept EXCLUDES(lock_) {
    const BasicLockGuard<P> guard(lock_);
    Work* before = nullptr;
    for (Work* entry = first_; entry != nullptr; before = entry, entry = entry->next_)
      if (entry == &work) {
        unlink(before, work);
        return true;
      }
    return false;
  }

  [[nodiscard]] static bool in_use(const Work& work) noexcept {
    return work.queued_.load(std::memory_order_acquire) != 0; // pairs with unlink() (S2)
  }

  // cpu_stopper_thread(): executes everything queued, in order. CONTEXT: the participant's thread, no lock
  // held; blocks for as long as the works do.
  void run_works(CpuId cpu) noexcept EXCLUDES(lock_) {
    for (;;) {
      lock_.lock();
      Work* const work = first_;
      if (work == nullptr) {
        lock_.unlock();
        return;
      }
      // Copied out before the work is given back: its owner may use it again as soon as it is unlinked.
      const auto function = work->function_;
      void* const arg = work->arg_;
      BasicDone<P>* const done = work->done_;
      unlink(nullptr, *work);
      lock_.unlock();
      const Invocation invocation = function(arg, cpu);
      if (done != nullptr)
        done->signal(invocation.result, invocation.threw);
    }
  }

  // unpark: from now on works are queued. RETURNS: false where the participant has left for good.
  [[nodiscard]] bool enable() noexcept EXCLUDES(lock_) {
    const BasicLockGuard<P> guard(lock_);
    if (!retired_)
      enabled_.store(1, std::memory_order_release); // S3, and under the lock
    return !retired_;
  }
  // park: from now on nothing is queued. Only with an empty queue: a work that ran later, on a thread that no stop
  // waits for any more, would run beside the callback of a stop. RETURNS: false where works are queued.
  [[nodiscard]] bool disable_if_idle() noexcept EXCLUDES(lock_) {
    const BasicLockGuard<P> guard(lock_);
    if (first_ != nullptr)
      return false;
    enabled_.store(0, std::memory_order_release); // S3, and under the lock
    return true;
  }
  // The same for good.
  [[nodiscard]] bool retire_if_idle() noexcept EXCLUDES(lock_) {
    const BasicLockGuard<P> guard(lock_);
    if (first_ != nullptr)
      return false;
    retired_ = true;
    enabled_.store(0, std::memory_order_release); // S3, and under the lock
    return true;
  }
  // A snapshot; certain only under the lock. acquire: pairs with enable() and disable_if_idle() (S3).
  [[nodiscard]] bool enabled() const noexcept { return enabled_.load(std::memory_order_acquire) != 0; }

  // When and out of what the participant came, for the report. CONTEXT: its own thread alone, also to read.
  struct Outing {
    int64_t out_ns = 0;
    uint32_t activity = 0;
  };
  Outing outing;

  BasicLock<P>& lock() noexcept STOPVISOR_ANNOTATE(lock_returned(lock_)) { return lock_; }

private:
  void unlink(Work* before, Work& work) noexcept REQUIRES(lock_) {
    (before != nullptr ? before->next_ : first_) = work.next_;
    if (last_ == &work)
      last_ = before;
    if (first_ == nullptr)
      // release: also another thread may empty the queue, of a participant that rises (S1).
      pending_.store(0, std::memory_order_release);
    work.next_ = nullptr;
    work.queued_.store(0, std::memory_order_release); // S2: the owner may write the work from here on
  }

  BasicLock<P> lock_;
  typename P::template Atomic<uint32_t> enabled_{0}; // written under the lock
  bool retired_ GUARDED_BY(lock_) = false;
  bool at_rest_ GUARDED_BY(lock_) = false;
  Work* first_ GUARDED_BY(lock_) = nullptr;
  Work* last_ GUARDED_BY(lock_) = nullptr;
  typename P::template Atomic<uint32_t> pending_{0}; // written under the lock
};

} // namespace stopvisor::stopper
