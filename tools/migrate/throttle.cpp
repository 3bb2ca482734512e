// SPDX-License-Identifier: Apache-2.0
#include "tools/migrate/throttle.h"

#include "vmm/urgent_thread.h"

namespace stopvisor::migrate {
namespace {

using Clock = std::chrono::steady_clock;

// A stop costs some hundred microseconds; a guest's timers and networks bear to be late by this much.
constexpr std::chrono::milliseconds kPeriod{20};
constexpr std::chrono::milliseconds kWithin{100}; // of a stop: one that is late is a slowed guest as well

} // namespace

Throttle::Throttle(vmm::Vm& vm) : vm_(vm), thread_([this](const std::stop_token& stop) { run(stop); }) {}

void Throttle::set(double fraction) noexcept {
  const std::lock_guard guard(mutex_);
  figures_.fraction = fraction;
  changed_.notify_all();
}

void Throttle::end() noexcept {
  thread_.request_stop();
  if (thread_.joinable())
    thread_.join();
}

Throttle::Figures Throttle::figures() const noexcept {
  const std::lock_guard guard(mutex_);
  return figures_;
}

void Throttle::run(const std::stop_token& stop) {
  vmm::make_this_thread_urgent(); // or the guest is held for as long as it takes to get a processor
  std::unique_lock lock(mutex_);
  while (changed_.wait(lock, stop, [this] { return figures_.fraction > 0; }) && !stop.stop_requested()) {
    const auto hold = std::chrono::duration_cast<Clock::duration>(kPeriod * figures_.fraction);
    lock.unlock();
    const bool held = vm_.stops().acquire_hold({.deadline = Clock::now() + kWithin}).has_value();
    const auto begin = Clock::now();
    lock.lock();
    (void)changed_.wait_until(lock, stop, begin + hold, [] { return false; }); // until somebody ends it
    if (held) {
      (void)vm_.stops().release_hold(); // false: the VM has ended
      ++figures_.stops;
      figures_.held_for += Clock::now() - begin;
    }
    (void)changed_.wait_until(lock, stop, begin + kPeriod, [] { return false; });
  }
}

} // namespace stopvisor::migrate
