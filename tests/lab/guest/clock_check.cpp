// SPDX-License-Identifier: Apache-2.0
// Runs in a guest, a thread on each CPU: CLOCK_MONOTONIC never goes back between any two CPUs, and timers fire,
// none too early. It ends after the given number of seconds, or with SIGTERM, and prints one line that begins with
// CLOCK.
//
// Linked statically: the guest has no library. A guest that was stopped may find its clocks and timers late; that
// is what a stop is. Going back, or firing before its time, is what no stop may do.
#include <pthread.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

constexpr int64_t kNsPerSecond = 1'000'000'000;
constexpr int64_t kTimerNs = 5'000'000;
constexpr unsigned kReadsPerTimer = 20'000;

std::atomic<int64_t> g_latest = 0; // the latest time any CPU has seen
std::atomic<bool> g_enough = false;
std::atomic<uint64_t> g_reads = 0, g_backwards = 0, g_timers = 0, g_early = 0;
std::atomic<int64_t> g_worst = 0;

int64_t now_ns() {
  timespec time{};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * kNsPerSecond + time.tv_nsec;
}

void raise(std::atomic<int64_t>& to, int64_t value) {
  int64_t seen = to.load(std::memory_order_relaxed);
  while (seen < value &&
         !to.compare_exchange_weak(seen, value, std::memory_order_release, std::memory_order_relaxed))
    ;
}

// What another CPU has published was read before our clock was: acquire, pairs with the release in raise().
void read_clock() {
  const int64_t latest = g_latest.load(std::memory_order_acquire);
  const int64_t now = now_ns();
  if (now < latest) {
    g_backwards.fetch_add(1, std::memory_order_relaxed); // counters: read when all threads are joined
    raise(g_worst, latest - now);
  }
  raise(g_latest, now);
}

void wait_for_timer() {
  const int64_t due = now_ns() + kTimerNs;
  const timespec when{due / kNsPerSecond, due % kNsPerSecond};
  while (::clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, nullptr) != 0)
    ;
  g_timers.fetch_add(1, std::memory_order_relaxed);
  if (now_ns() < due)
    g_early.fetch_add(1, std::memory_order_relaxed);
}

void run_on(unsigned cpu, int64_t until) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  if (::pthread_setaffinity_np(::pthread_self(), sizeof(set), &set) != 0)
    std::printf("clock check: cannot run on CPU %u\n", cpu);
  while (now_ns() < until && !g_enough.load(std::memory_order_relaxed)) {
    for (unsigned i = 0; i < kReadsPerTimer; ++i)
      read_clock();
    g_reads.fetch_add(kReadsPerTimer, std::memory_order_relaxed);
    wait_for_timer();
  }
}

} // namespace

int main(int argc, char** argv) {
  const long seconds = argc > 1 ? std::atol(argv[1]) : 10;
  std::signal(SIGTERM, [](int) { g_enough.store(true, std::memory_order_relaxed); });
  const int64_t until = now_ns() + seconds * kNsPerSecond;
  const auto cpus = static_cast<unsigned>(::sysconf(_SC_NPROCESSORS_ONLN));
  std::vector<std::thread> threads;
  for (unsigned cpu = 0; cpu < cpus; ++cpu)
    threads.emplace_back(run_on, cpu, until);
  for (std::thread& thread : threads)
    thread.join();
  std::printf("CLOCK cpus=%u reads=%llu backwards=%llu worst_ns=%lld timers=%llu early=%llu\n", cpus,
              static_cast<unsigned long long>(g_reads.load()), static_cast<unsigned long long>(g_backwards.load()),
              static_cast<long long>(g_worst.load()), static_cast<unsigned long long>(g_timers.load()),
              static_cast<unsigned long long>(g_early.load()));
  return g_backwards.load() == 0 && g_early.load() == 0 && g_timers.load() != 0 ? 0 : 1;
}
