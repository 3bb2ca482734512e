// SPDX-License-Identifier: Apache-2.0
// The host thread of one vCPU: it runs the guest, serves its exits, and is its participant in every stop.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <expected>
#include <functional>
#include <string>
#include <thread>

#include "stopper/function_ref.h"
#include "stopper/native.h"
#include "vmm/bus.h"
#include "vmm/error.h"
#include "vmm/guest_memory.h"
#include "vmm/guest_request.h"
#include "vmm/kvm_vcpu.h"
#include "vmm/register_wishes.h"
#include "vmm/test_hooks.h"
#include "vmm/thread_priority.h"
#include "vmm/vm_life.h"
#include "vmm/written_pages.h"

namespace stopvisor::vmm {

// What the threads of one VM share; all of it outlives them.
struct VcpuSurroundings {
  stopper::StopMachine& machine;
  const Bus& ports;
  const Bus& mmio;
  const GuestMemory& memory;
  const VcpuHookPoint& hooks;
  VmLife& life;
  const WrittenPages& written;
  const RegisterWishes& register_wishes;
  std::function<std::string()> crash_note; // lines to add to the report of a crash the guest reported
};

class VcpuThread {
public:
  VcpuThread(uint32_t cpu, KvmVcpu vcpu, VcpuSurroundings around);
  ~VcpuThread(); // joins; the VM is ending then
  VcpuThread(const VcpuThread&) = delete;
  VcpuThread& operator=(const VcpuThread&) = delete;

  // Makes the thread. It runs no guest code before open_gate(), and takes part in stops once it was awaited and
  // unparked.
  // CONTEXT: once (start_offline(): again after end_offline()); does not wait for the thread.
  // RETURNS: kFailed where the host has no more threads.
  [[nodiscard]] std::expected<void, Error> start();
  // Returns once it can be kicked. CONTEXT: after start() or start_offline(), and before any work; blocks shortly.
  void await_start() const noexcept;
  // The same of a vCPU that is offline: its stopper is parked, and it runs no guest code before come_online().
  [[nodiscard]] std::expected<void, Error> start_offline();
  // Ends and joins a thread that is offline. CONTEXT: as come_online().
  void end_offline();

  // Whether it is out of the machine: no stop waits for it, it runs no guest code. CONTEXT: any thread; a snapshot.
  [[nodiscard]] bool offline() const noexcept { return (gate_.load(std::memory_order_acquire) & kOffline) != 0; }
  // Calls `arrive` on the thread of a vCPU that is offline. Where it says true it has unparked the stopper, and the
  // vCPU is online. CONTEXT: whoever changes the set of vCPUs, one at a time; blocks for as long as `arrive` does.
  // RETURNS: what `arrive` said; false where the thread has left, or leaves, as the VM ends.
  [[nodiscard]] bool come_online(stopper::FunctionRef<bool()> arrive);
  // Takes the vCPU out of the machine. CONTEXT: its own thread, in a callback (StopMachine::stop_one_cpu()), with
  // the hotplug lock's write side held by whoever asked for it.
  void go_offline() noexcept;
  // Lets it run guest code. CONTEXT: any thread, does not block.
  void open_gate() noexcept;
  // CONTEXT: not a vCPU thread; blocks until the thread has left, which it does when the VM ends.
  void join();

  // Makes the thread look at its queue and at VmLife::ending(). CONTEXT: any thread, does not block; harmless where
  // the thread does not exist yet, or no more.
  void kick() noexcept;

  // See ThreadPriority. CONTEXT: any thread, does not block.
  [[nodiscard]] stopper::Kick::Lift lift() noexcept { return priority_.lift(); }
  void restore() noexcept { priority_.restore(); }

  // A device passes on what the guest asked for. CONTEXT: the thread of the vCPU that is being served, else it is
  // lost.
  static void request_from_current(GuestRequest request) noexcept;

  // Live values, each by itself. CONTEXT: any thread.
  [[nodiscard]] pid_t thread_id() const noexcept { return priority_.thread_id(); } // 0: not running
  [[nodiscard]] uint64_t exits() const noexcept { return exits_.load(std::memory_order_relaxed); }
  [[nodiscard]] std::string last_exit() const; // "" before the first

  [[nodiscard]] const KvmVcpu& vcpu() const noexcept { return vcpu_; }

private:
  // gate_: may it run guest code, is it out of the machine, and how often was it kicked.
  static constexpr uint32_t kGateOpen = 1;
  static constexpr uint32_t kOffline = 2;
  static constexpr uint32_t kOneKick = 4;
  [[nodiscard]] static bool may_run(uint32_t gate) noexcept { return (gate & (kGateOpen | kOffline)) == kGateOpen; }
  static constexpr uint32_t kNoExit = ~0u;
  enum Stage : uint32_t { kNotStarted, kRuns, kLeft };
  // What an offline thread is to do; on the asker's stack.
  struct Order {
    stopper::FunctionRef<bool()>* arrive = nullptr; // null: leave
    bool online = false;
    std::atomic<uint32_t> done{0};
  };

  void run() noexcept;
  void loop() noexcept;
  void wait_at_gate() noexcept;
  [[nodiscard]] bool give(Order& order) noexcept;
  void obey(Order& order) noexcept;
  static void finish(Order& order) noexcept;
  void run_works() noexcept;
  void enter_guest() noexcept;
  void serve_exit() noexcept;
  void serve_io() noexcept;
  void serve_mmio() noexcept;
  void serve_system_event() noexcept;
  void serve_request() noexcept;
  void finish_instruction() noexcept;
  void fail(EndKind kind, const std::string& reason, const std::string& note = {}) noexcept;
  void at(VcpuPoint point) const noexcept { around_.hooks.at(point, cpu_); }

  const uint32_t cpu_;
  const KvmVcpu vcpu_;
  const VcpuSurroundings around_;

  // The thread's own:
  bool incomplete_ = false; // an I/O or MMIO exit was served, KVM has not finished the instruction (rule 2)
  bool noted_out_ = false;  // note_out() was called for the works to come
  uint32_t activity_ = kNoExit;
  uint64_t written_ = 0; // what the host had written to guest memory when this thread last serialised
  GuestRequest request_ = GuestRequest::kNone;
  bool told_to_leave_ = false; // while offline

  // Written by the thread, read by anybody:
  std::atomic<uint32_t> stage_{kNotStarted};
  std::atomic<uint64_t> exits_{0};
  std::atomic<uint32_t> last_exit_{kNoExit};
  // Written by anybody:
  std::atomic<uint32_t> gate_{0};
  std::atomic<Order*> order_{nullptr}; // &no_more_orders_ once the thread has left
  Order no_more_orders_;
  ThreadPriority priority_;

  std::thread thread_;
};

} // namespace stopvisor::vmm
