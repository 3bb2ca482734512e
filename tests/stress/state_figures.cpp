// SPDX-License-Identifier: Apache-2.0
// How long a guest is held for its state, by its number of vCPUs; and what asking KVM in parallel would be worth:
// the same calls, by one thread and by one for each vCPU, which waits for its turn as a vCPU's thread does.
//
//   state_figures [ROUNDS]
#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "tools/probe/probe_view.h"
#include "vmm/vm.h"

namespace stopvisor::vmm {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kCalls = 4; // of registers(), four ioctls each: as many ioctls as a vCPU's state takes, roughly

double median_us(std::vector<Clock::duration> times) {
  const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
  std::nth_element(times.begin(), middle, times.end());
  return std::chrono::duration<double, std::micro>(*middle).count();
}

template <typename Work>
Clock::duration timed(const Work& work) {
  const auto begin = Clock::now();
  work();
  return Clock::now() - begin;
}

bool measure(uint32_t cpus, int rounds) {
  VmConfig config;
  config.name = "figures";
  config.cpus = cpus;
  config.memory_bytes = 64ULL << 20;
  auto vm = Vm::create(config);
  if (!vm || !(*vm)->start() || !tools::ProbeView((*vm)->memory()).await_running(cpus, 60, [] { return true; }))
    return false;
  bool good = true;
  std::atomic<bool> failed{false};
  size_t bytes = 0;
  const auto ask = [&](uint32_t cpu) {
    for (int call = 0; call < kCalls; ++call)
      if (!(*vm)->registers(cpu))
        failed.store(true, std::memory_order_relaxed); // read after everybody is done
  };
  std::vector<Clock::duration> state, one, each;
  std::barrier begin(cpus + 1);
  std::barrier end(cpus + 1);
  bool over = false;
  std::vector<std::thread> threads;
  for (uint32_t cpu = 0; cpu < cpus; ++cpu)
    threads.emplace_back([&, cpu] {
      for (;;) {
        begin.arrive_and_wait();
        if (over)
          return;
        ask(cpu);
        end.arrive_and_wait();
      }
    });
  for (int round = 0; round < rounds && good; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    const auto stop = (*vm)->stops().run([&](stopper::StopContext&) {
      state.push_back(timed([&] {
        const auto saved = (*vm)->save_state();
        good = saved.has_value();
        bytes = 0;
        for (const StateSection& section : good ? *saved : std::vector<StateSection>{})
          bytes += section.payload.size();
      }));
      one.push_back(timed([&] {
        for (uint32_t cpu = 0; cpu < cpus; ++cpu)
          ask(cpu);
      }));
      each.push_back(timed([&] {
        begin.arrive_and_wait();
        end.arrive_and_wait();
      }));
      return 0;
    });
    good = good && stop.has_value();
  }
  over = true;
  begin.arrive_and_wait();
  for (std::thread& thread : threads)
    thread.join();
  good = good && !failed.load(std::memory_order_relaxed);
  if (good)
    std::printf("%5u %12zu %16.0f %22.0f %22.0f\n", cpus, bytes, median_us(state), median_us(one), median_us(each));
  return good;
}

} // namespace
} // namespace stopvisor::vmm

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 200; // NOLINT(cert-err34-c): 0 is refused
  if (rounds < 1)
    return 2;
  std::printf("vCPUs  state bytes  save_state() us  calls by one thread us  by one for each us\n");
  for (const uint32_t cpus : {1U, 2U, 4U, 8U})
    if (!stopvisor::vmm::measure(cpus, rounds)) {
      std::fprintf(stderr, "state_figures: %u vCPUs: it failed\n", cpus);
      return 1;
    }
  return 0;
}
