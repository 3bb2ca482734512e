// SPDX-License-Identifier: Apache-2.0
// The stop machinery of one virtual machine: one stopper per possible participant, and the family of calls that
// stop them, under the names of the kernel's kernel/stop_machine.c (docs/reference/stop-machine.md maps them).
//
// Participants are numbered: vCPUs from 0, device workers from first_worker(). Each has one thread, bound with
// bind_thread(), that calls run_works() whenever should_run() says so or it is kicked.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <expected>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "stopper/error.h"
#include "stopper/hotplug_lock.h"
#include "stopper/kick.h"
#include "stopper/multi_stop.h"
#include "stopper/thread_mark.h"

namespace stopvisor::stopper {

struct StopOptions {
  TimePoint deadline = kForever; // everybody must be held by then, or nothing is run
  Nanoseconds budget{1'000'000}; // told to the callback as StopContext::budget_end
};

// What a stop gave back.
struct StopOutcome {
  int result = 0;                             // 0 where all executions returned 0, else the last non-zero one
  std::vector<std::pair<CpuId, int>> nonzero; // who returned what
};

template <class P>
class BasicStopMachine;

// A stop in state Run, held by the thread that asked for it. Whoever owns it may do what it likes with guest
// memory and with the vCPUs' state; destroying it lets everybody go.
template <class P>
class [[nodiscard]] BasicStop {
public:
  BasicStop() noexcept = default;
  BasicStop(BasicStop&& other) noexcept : machine_(std::exchange(other.machine_, nullptr)) {}
  BasicStop& operator=(BasicStop&& other) noexcept {
    if (this != &other) {
      release();
      machine_ = std::exchange(other.machine_, nullptr);
    }
    return *this;
  }
  BasicStop(const BasicStop&) = delete;
  BasicStop& operator=(const BasicStop&) = delete;
  ~BasicStop() { release(); }

  [[nodiscard]] explicit operator bool() const noexcept { return machine_ != nullptr; }

  // Lets everybody go. Does not wait until they have left: the next stop does.
  // CONTEXT: the thread that asked for the stop, or, after detach(), any thread; does not block.
  void release() noexcept {
    if (machine_ != nullptr)
      std::exchange(machine_, nullptr)->release_stop();
  }
  // Makes the stop independent of the calling thread: another one may release it, and this one may ask for
  // further stops (and wait for this one's end) without "would deadlock".
  void detach() noexcept {
    if (machine_ != nullptr)
      machine_->unmark_hold();
  }
  // The timeline so far. CONTEXT: the owner.
  [[nodiscard]] StopReport report() const {
    StopReport report;
    if (machine_ != nullptr)
      machine_->wide_->fill(report);
    return report;
  }

private:
  friend class BasicStopMachine<P>;
  explicit BasicStop(BasicStopMachine<P>& machine) noexcept : machine_(&machine) {}
  BasicStopMachine<P>* machine_ = nullptr;
};

template <class P>
class BasicStopMachine {
public:
  using Stop = BasicStop<P>;
  using Work = BasicWork<P>;

  // Makes disabled stoppers for vCPUs 0 .. possible_cpus - 1 and room for `possible_workers` device workers.
  // Together they are kMaxCpus at most: there are fewer vCPUs where there would be more. `kick` must outlive this
  // object. CONTEXT: no other thread knows the object yet. Allocates; may throw std::bad_alloc.
  BasicStopMachine(CpuId possible_cpus, Kick& kick, CpuId possible_workers = 0);
  ~BasicStopMachine();
  BasicStopMachine(const BasicStopMachine&) = delete;
  BasicStopMachine& operator=(const BasicStopMachine&) = delete;

  [[nodiscard]] CpuId possible_cpus() const noexcept { return possible_cpus_; }
  [[nodiscard]] CpuId first_worker() const noexcept { return possible_cpus_; }
  [[nodiscard]] CpuMask online() const noexcept; // a snapshot, vCPUs only

  // ---- the participant's own thread -------------------------------------------------------------------

  // Tells the machinery that the calling thread is participant `cpu` from now on / no longer.
  void bind_thread(CpuId cpu) noexcept;
  void unbind_thread() noexcept;
  // cpu_stop_should_run(). Between clearing immediate_exit and KVM_RUN; one atomic read.
  [[nodiscard]] bool should_run(CpuId cpu) const noexcept { return stoppers_[cpu].should_run(); }
  // For the report: it has just left the guest, doing `activity`. Before run_works().
  void note_out(CpuId cpu, uint32_t activity) noexcept {
    stoppers_[cpu].outing = {P::now().time_since_epoch().count(), activity};
  }
  // cpu_stopper_thread(): executes what is queued. Blocks while the participant is held.
  void run_works(CpuId cpu) noexcept { stoppers_[cpu].run_works(cpu); }

  // A device worker has nothing to do: until rise() it touches nothing, and stops pass it by without waking it.
  // CONTEXT: the participant's own thread. RETURNS: false where works are queued: run_works() first.
  [[nodiscard]] bool rest(CpuId cpu) noexcept { return stoppers_[cpu].rest(); }
  // Before it does anything again. A stop may have begun meanwhile: should_run() tells, after this.
  void rise(CpuId cpu) noexcept { stoppers_[cpu].rise(); }

  // stop_machine_park(): takes the participant out. What was queued before is executed first, so that no stop
  // waits for it in vain. Needs no lock: a stop that finds it disabled does without it.
  // CONTEXT: the participant's own thread; it must not enter the guest again before unpark(). Blocks like
  // run_works().
  void park(CpuId cpu) noexcept;

  // park() for good: the thread leaves, and unpark() is refused with kEnded from now on. CONTEXT: as park().
  void retire(CpuId cpu) noexcept;

  // ---- hotplug ----------------------------------------------------------------------------------------------

  // stop_machine_unpark(): participant `cpu` takes part from now on. Waits for a stop in progress: while one is
  // held, nobody new may start to run guest code.
  // CONTEXT: any thread but a participant's; blocks. RETURNS: kNoSuchCpu, kWouldDeadlock, kDeadline; kEnded where
  // the participant's thread has left for good.
  [[nodiscard]] std::expected<void, StopError> unpark(CpuId cpu, TimePoint deadline = kForever);
  // The same for a caller that holds hotplug()'s write side; does not block.
  [[nodiscard]] std::expected<void, StopError> unpark_cpuslocked(CpuId cpu);

  // cpus_read_lock() and cpus_write_lock(), for callers that must keep the set of vCPUs as it is.
  [[nodiscard]] BasicHotplugLock<P>& hotplug() noexcept { return hotplug_; }

  // ---- stops ------------------------------------------------------------------------------------------------
  // All of them: CONTEXT: may block; any thread but a participant's or one that holds a stop (kWouldDeadlock).
  // RETURNS also kDeadline with the stragglers' names, kEnded after close(), kCallbackThrew.

  // Runs fn on one participant's thread, a vCPU's or a device worker's. RETURNS: fn's result; kNoSuchCpu where it
  // is not possible or offline.
  [[nodiscard]] std::expected<int, StopError> stop_one_cpu(CpuId cpu, StopFn fn, const StopOptions& options = {});

  // Queues function(arg, cpu) on one vCPU and returns at once. `work` belongs to the caller, must be unused, and
  // stays untouched until the function begins. CONTEXT: any thread, callbacks included; does not block.
  // Nobody waits for it, so a kick that the host lost is not noticed: it runs at the vCPU's next exit, or stop.
  // RETURNS: kNoSuchCpu, kWorkInUse, kEnded.
  [[nodiscard]] std::expected<void, StopError> stop_one_cpu_nowait(CpuId cpu, typename Work::Function function,
                                                                   void* arg, Work& work);

  // Holds two vCPUs and runs fn on the first one named. RETURNS: fn's result; kNoSuchCpu, kSameCpu.
  [[nodiscard]] std::expected<int, StopError> stop_two_cpus(CpuId cpu1, CpuId cpu2, StopFn fn,
                                                            const StopOptions& options = {});

  // Runs fn on each online vCPU of `cpus`, not held together. Serialised with all wide stops.
  // RETURNS: kEmptyMask; kNoSuchCpu where all are offline. After kDeadline fn has run on those who came in time.
  [[nodiscard]] std::expected<StopOutcome, StopError> stop_cpus(const CpuMask& cpus, StopFn fn,
                                                                const StopOptions& options = {});
  // The same, but kBusy where another wide stop is going on.
  [[nodiscard]] std::expected<StopOutcome, StopError> try_stop_cpus(const CpuMask& cpus, StopFn fn,
                                                                    const StopOptions& options = {});

  // Holds everybody and runs fn on the threads of `active` (null: on the first online vCPU).
  // Before anything was ever unparked fn is called directly.
  [[nodiscard]] std::expected<StopOutcome, StopError> stop_machine(StopFn fn, const CpuMask* active = nullptr,
                                                                   const StopOptions& options = {});
  // The same for a caller that holds hotplug()'s read or write side.
  [[nodiscard]] std::expected<StopOutcome, StopError>
  stop_machine_cpuslocked(StopFn fn, const CpuMask* active = nullptr, const StopOptions& options = {});

  // The same for a thread that is about to become vCPU `cpu`, holds hotplug()'s write side and is not online:
  // it takes part itself, and runs fn where `active` names it. It may be bound as `cpu` already.
  [[nodiscard]] std::expected<StopOutcome, StopError>
  stop_machine_from_inactive_cpu(CpuId cpu, StopFn fn, const CpuMask* active = nullptr,
                                 const StopOptions& options = {});

  // Holds everybody and returns with the stop in state Run: the caller does on its own thread what has to be done.
  // This is what the VMM's operations use. With `cpus`, only these vCPUs are held: the others and the device
  // workers run on, so guest memory is not at rest. RETURNS: kEmptyMask, kNoSuchCpu for such a partial stop.
  [[nodiscard]] std::expected<Stop, StopError> hold(const StopOptions& options = {}, const CpuMask* cpus = nullptr);

  // ---- the rest ---------------------------------------------------------------------------------------------

  // The timeline of the last wide stop that has ended; waits until everybody has left it.
  // CONTEXT: blocks shortly; not a participant's thread.
  [[nodiscard]] StopReport last_report();
  // The number of the stop that is held now. CONTEXT: its owner.
  [[nodiscard]] uint64_t sequence() const noexcept { return wide_->sequence; }
  // One more callback shares the stop that is held now. CONTEXT: its owner.
  void note_shared() noexcept { ++wide_->shared; }
  // Whether the calling thread is a participant, inside a callback, or the owner of a stop: what it asks for is
  // refused with kWouldDeadlock.
  [[nodiscard]] bool thread_marked() const noexcept { return Marks::find(this) != nullptr; }

  // From now on every stop is refused with kEnded. A stop in progress goes on.
  void close() noexcept { closed_.store(1, std::memory_order_release); } // C1, pairs with refuse() and closed()
  [[nodiscard]] bool closed() const noexcept { return closed_.load(std::memory_order_acquire) != 0; } // C1

private:
  friend class BasicStop<P>;
  using MultiStop = BasicMultiStop<P>;
  using Slot = typename MultiStop::Slot;
  using State = MultiStopState;
  using Marks = BasicThreadMarks<P>;
  using InsideCallback = BasicInsideCallback<P>;
  template <class T>
  using Atomic = typename P::template Atomic<T>;

  // How long nobody may have come before everybody missing is kicked again. A kick cannot be lost by the
  // protocol; this is for hosts that lose one (a debugger that swallows a signal). Counted in the report.
  static constexpr Nanoseconds kRekickInterval{20'000'000};

  struct OneShot;
  struct Each;

  // A barrier and all that belongs to one use of it. There are two, so that a stop need not wait until everybody
  // has left the one before: a vCPU thread that leaves it late comes straight on into the next, without a turn in
  // the guest, and has to be scheduled once instead of twice.
  struct WideStop {
    MultiStop stop;
    std::unique_ptr<Slot[]> slots; // one per possible participant
    std::vector<Slot*> vcpus;      // of this use; capacity reserved
    std::vector<Slot*> workers;
    // Written under report_lock_, but for `shared`:
    uint64_t sequence = 0;
    uint32_t shared = 0; // its owner's in Run
    int64_t requested_ns = 0;
    int64_t begun_ns = 0;

    void fill(StopReport& report) const;
  };
  enum class Wait { kYes, kNo };

  // How long after the kicks the missing are lifted: on a busy host a vCPU thread that lost its processor would
  // otherwise wait for its turn among all others. A timer that ends before the host's next tick must be programmed
  // into the hardware, which costs a virtualised host more than the stop itself; so the short one is set only while
  // stops have been late of late.
  static constexpr Nanoseconds kLiftAfter{5'000'000};
  static constexpr Nanoseconds kLiftSoonAfter{150'000};
  static constexpr Nanoseconds kLiftLaterEach{20'000}; // as much later for each participant
  static constexpr uint32_t kLateMemory = 64;          // stops
  static constexpr size_t kFew = 2;                    // participants

  // When a wait for participants looks again at who is missing.
  static TimePoint next_look(TimePoint deadline) noexcept {
    const TimePoint now = P::now();
    return deadline - now < kRekickInterval ? deadline : now + kRekickInterval;
  }
  static int64_t now_ns() noexcept { return P::now().time_since_epoch().count(); }
  [[nodiscard]] std::expected<void, StopError> refuse(CpuId but = kMaxCpus) const noexcept;

  [[nodiscard]] std::expected<void, StopError> take_facility(TimePoint deadline, Wait wait) noexcept;
  void drop_facility() noexcept NO_THREAD_SAFETY_ANALYSIS { facility_.unlock(); }
  void settle_report(const WideStop& wide) noexcept REQUIRES(report_lock_);
  void arm(const typename MultiStop::Plan& plan, int64_t requested_ns) noexcept;

  [[nodiscard]] std::expected<StopOutcome, StopError> stop_cpus_owned(const CpuMask& cpus, StopFn fn,
                                                                      const StopOptions& options);
  [[nodiscard]] std::expected<StopOutcome, StopError> stop_machine_owned(StopFn fn, const CpuMask* active,
                                                                         const StopOptions& options, CpuId local);
  void prepare_slot(Slot& slot, MultiStop& stop, CpuId cpu, bool active) noexcept;
  void choose_vcpus(const CpuMask& cpus, const CpuMask& active) noexcept;
  void choose_workers() noexcept;
  [[nodiscard]] bool gather(MultiStop& stop, TimePoint deadline) noexcept;
  void leave(MultiStop& stop) noexcept;
  void queue_all(MultiStop& stop) noexcept;
  void queue_workers(MultiStop& stop) noexcept;
  [[nodiscard]] TimePoint patience(size_t participants) noexcept;
  [[nodiscard]] bool take_late_few() noexcept;
  bool lift_missing(std::span<Slot* const> slots, std::atomic<uint32_t>& late) noexcept;
  uint32_t kick_missing(std::span<Slot* const> slots) noexcept;
  void restore_lifted(std::span<Slot* const> slots) noexcept;
  void hurry_out(MultiStop& stop, TimePoint deadline) noexcept;
  State await_moving_on(MultiStop& stop, State from, TimePoint deadline) noexcept;
  CpuMask await_works(std::span<Slot* const> slots, BasicDone<P>& done, TimePoint deadline) noexcept;
  void call_off(MultiStop& stop, State from) noexcept;
  [[nodiscard]] bool queue_two(Slot& one, Slot& two) noexcept;
  void release_stop() noexcept;
  void unmark_hold() noexcept { Marks::take(hold_mark_); }

  const CpuId possible_cpus_;
  const CpuId possible_participants_;
  Kick& kick_;
  std::unique_ptr<BasicStopper<P>[]> stoppers_;
  std::unique_ptr<ThreadMark[]> participants_; // each its own thread's
  BasicHotplugLock<P> hotplug_;
  Atomic<uint32_t> initialized_{0}; // a stopper was enabled once
  Atomic<uint32_t> closed_{0};
  Atomic<uint32_t> stop_cpus_in_progress_{0};
  // Stops to come that count as on a busy host. A guess that nothing rests on, hence no Atomic<>: the scheduler of
  // the tests need not try its interleavings.
  std::atomic<uint32_t> late_{0};
  std::atomic<uint32_t> late_few_{0}; // the same for stops of few

  // The wide-stop facility (the kernel's stop_cpus_mutex): whoever holds the lock owns what follows.
  BasicLock<P> facility_;
  std::array<WideStop, 2> wides_;
  WideStop* wide_ = wides_.data(); // of the present stop
  ThreadMark hold_mark_{.machine = this};
  uint64_t sequence_ = 0; // of the last stop that was armed

  BasicLock<P> report_lock_; // guards report_, and what of the wide stops last_report() reads
  StopReport report_;
};

} // namespace stopvisor::stopper

#include "stopper/stop_machine_gather.h"
#include "stopper/stop_machine_life.h"
#include "stopper/stop_machine_narrow.h"
#include "stopper/stop_machine_wide.h"
