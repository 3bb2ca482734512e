// SPDX-License-Identifier: Apache-2.0
// A vCPU thread while its vCPU is out of the machine: how it gets there, waits, and comes back.
//
// An offline thread waits at its gate and takes orders. There is one asker at a time, whose order is on its stack:
// it is either carried out by the thread, or given back by the thread as it leaves (O1).
#include "vmm/vcpu_thread.h"

namespace stopvisor::vmm {

std::expected<void, Error> VcpuThread::start_offline() {
  gate_.fetch_or(kOffline | kGateOpen, std::memory_order_acq_rel); // no thread yet
  stage_.store(kNotStarted, std::memory_order_relaxed);            // the same
  order_.store(nullptr, std::memory_order_relaxed);                // the same
  told_to_leave_ = false;
  return start();
}

void VcpuThread::end_offline() {
  Order leave;
  (void)give(leave); // false: it has left
  join();
}

bool VcpuThread::come_online(stopper::FunctionRef<bool()> arrive) {
  Order order;
  order.arrive = &arrive;
  return give(order) && order.online;
}

// RETURNS: false where the thread has left; else when the order is done, or given back.
bool VcpuThread::give(Order& order) noexcept {
  Order* none = nullptr;
  // O1, release: the order as it was made; acquire of a failure: the thread's last works.
  if (!order_.compare_exchange_strong(none, &order, std::memory_order_acq_rel, std::memory_order_acquire))
    return false;
  kick(); // it looks at order_ after gate_ (G1), so that this wakes it where it had not seen the order
  while (order.done.load(std::memory_order_acquire) == 0) // O2
    stopper::FutexPlatform::wait(order.done, 0, stopper::kForever);
  return true;
}

// CONTEXT: its own thread, offline.
void VcpuThread::obey(Order& order) noexcept {
  if (order.arrive == nullptr)
    told_to_leave_ = true;
  else
    order.online = (*order.arrive)();
  if (order.online)
    gate_.fetch_and(~kOffline, std::memory_order_acq_rel); // G1
  order_.store(nullptr, std::memory_order_release);        // O1: free for the next asker
  finish(order);
}

// The order is gone as soon as its asker sees it done.
void VcpuThread::finish(Order& order) noexcept {
  order.done.store(1, std::memory_order_release); // O2
  stopper::FutexPlatform::wake_all(order.done);
}

void VcpuThread::go_offline() noexcept {
  around_.machine.park(cpu_);
  gate_.fetch_or(kOffline, std::memory_order_acq_rel); // G1; before the asker is told that we are done
}

} // namespace stopvisor::vmm
