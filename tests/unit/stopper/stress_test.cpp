// SPDX-License-Identifier: Apache-2.0
// Everything at once on plain threads: what ThreadSanitizer is to watch, and what the machine is to survive.
//
// "Guest memory" is plain: vCPU and worker n write word n whenever they run. A callback writes what its stop holds,
// and nothing else; so any overlap, and any order that is too weak, is a data race.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "tests/unit/stopper/crew.h"

namespace stopvisor::stopper::testing {
namespace {

constexpr CpuId kCpus = 4;
constexpr CpuId kComesAndGoes = 3;
constexpr int kOperations = 4000; // of each client

struct Scene : Crew {
  Scene() : Crew(kCpus, 1) {}
  StopService service{machine};

  void write(const CpuMask& words) {
    words.for_each([this](CpuId word) { memory[word] += 1; });
  }
  void write_all() { write(CpuMask::first_n(kCpus + 1)); }
};

class Client {
public:
  Client(Scene& scene, uint64_t seed) : scene_(scene), random_(seed) {}

  void run() {
    for (int n = 0; n < kOperations; ++n) {
      const size_t which = random_() % kKinds.size();
      if ((this->*kKinds[which])())
        done_[which] += 1;
    }
  }
  static constexpr size_t kinds() { return kKinds.size(); }
  // Whether it must have succeeded at times: those that give up at once may be unlucky on a busy host.
  static constexpr bool must_succeed(size_t kind) {
    return kKinds[kind] != &Client::hold_hastily && kKinds[kind] != &Client::try_each;
  }
  [[nodiscard]] uint64_t done(size_t kind) const { return done_[kind]; }

private:
  template <class Result>
  bool fine(const Result& result, std::initializer_list<StopErrc> allowed) {
    if (result)
      return true;
    for (const StopErrc code : allowed)
      if (result.error().code == code)
        return false;
    ADD_FAILURE() << to_string(result.error().code);
    return false;
  }
  CpuId any_cpu() { return CpuId(random_() % kCpus); }
  CpuMask any_cpus() {
    CpuMask mask = CpuMask::of(any_cpu());
    mask.set(any_cpu());
    return mask;
  }
  static StopOptions hasty() { return {.deadline = Clock::now() + std::chrono::microseconds(40)}; }

  bool hold_all() {
    auto stop = scene_.machine.hold();
    if (stop)
      scene_.write_all();
    return fine(stop, {});
  }
  bool hold_some() {
    const CpuMask cpus = any_cpus();
    auto stop = scene_.machine.hold({}, &cpus);
    if (stop)
      scene_.write(cpus); // one that is offline cannot come back under our hands
    return fine(stop, {StopErrc::kNoSuchCpu});
  }
  bool hold_hastily() {
    auto stop = scene_.machine.hold(hasty());
    if (stop)
      scene_.write_all();
    return fine(stop, {StopErrc::kDeadline});
  }
  bool run_on_some() {
    const CpuMask active = any_cpus();
    auto outcome = scene_.machine.stop_machine(
        [&](StopContext& context) {
          scene_.memory[context.cpu] += 1;
          return 0;
        },
        &active);
    return fine(outcome, {StopErrc::kNoSuchCpu});
  }
  bool run_on_one() {
    const CpuId cpu = any_cpu();
    auto result = scene_.machine.stop_one_cpu(cpu, [&](StopContext& context) {
      scene_.memory[context.cpu] += 1;
      return int(cpu) + 1;
    });
    if (result) {
      EXPECT_EQ(*result, int(cpu) + 1);
    }
    return fine(result, {StopErrc::kNoSuchCpu});
  }
  bool run_on_one_of_two() {
    const CpuId one = any_cpu();
    const CpuId other = (one + 1 + random_() % (kCpus - 1)) % kCpus;
    auto result = scene_.machine.stop_two_cpus(one, other, [&](StopContext&) {
      scene_.memory[one] += 1;
      scene_.memory[other] += 1;
      return 0;
    });
    return fine(result, {StopErrc::kNoSuchCpu});
  }
  bool run_on_each(bool whether_busy_or_not) {
    const CpuMask cpus = any_cpus();
    const auto own = [&](StopContext& context) {
      scene_.memory[context.cpu] += 1;
      return 0;
    };
    return fine(whether_busy_or_not ? scene_.machine.stop_cpus(cpus, own) : scene_.machine.try_stop_cpus(cpus, own),
                {StopErrc::kNoSuchCpu, StopErrc::kBusy});
  }
  bool each() { return run_on_each(true); }
  bool try_each() { return run_on_each(false); }
  bool share() {
    const int number = int(random_() % 1000);
    auto outcome = scene_.service.run([&](StopContext&) {
      scene_.write_all();
      return number;
    });
    if (outcome) {
      EXPECT_EQ(outcome->result, number);
    }
    return fine(outcome, {});
  }
  bool keep() {
    auto held = scene_.service.acquire_hold();
    if (held) {
      EXPECT_TRUE(scene_.service.release_hold());
    }
    return fine(held, {});
  }
  bool fail() {
    auto outcome = scene_.machine.stop_machine([](StopContext&) -> int { throw std::runtime_error("on purpose"); });
    EXPECT_EQ(outcome.error().code, StopErrc::kCallbackThrew);
    return true;
  }
  bool look() {
    const StopReport report = scene_.machine.last_report();
    for (const auto& one : report.participants)
      if (report.end == StopEnd::kCompleted) {
        EXPECT_LE(one.held_ns, report.all_held_ns);
      }
    return true;
  }

  static constexpr std::array kKinds{&Client::hold_all,    &Client::hold_some,  &Client::hold_hastily,
                                     &Client::run_on_some, &Client::run_on_one, &Client::run_on_one_of_two,
                                     &Client::each,        &Client::try_each,   &Client::share,
                                     &Client::keep,        &Client::fail,       &Client::look};

  Scene& scene_;
  std::mt19937_64 random_;
  std::array<uint64_t, kKinds.size()> done_{};
};

TEST(Stress, OfTheWholeFamilyWithAVcpuThatComesAndGoes) {
  Scene scene;
  std::vector<Client> clients;
  for (uint64_t seed = 1; seed <= 4; ++seed)
    clients.emplace_back(scene, seed);
  std::atomic<uint32_t> running{4};
  std::vector<std::thread> threads;
  for (Client& client : clients)
    threads.emplace_back([&client, &running] {
      client.run();
      running.fetch_sub(1, std::memory_order_release);
    });
  int visits = 0;
  while (running.load(std::memory_order_acquire) != 0) {
    scene.finish(kComesAndGoes);
    scene.start(kComesAndGoes);
    ++visits;
  }
  for (std::thread& thread : threads)
    thread.join();
  EXPECT_GT(visits, 0);
  for (size_t kind = 0; kind < Client::kinds(); ++kind) {
    uint64_t done = 0;
    for (const Client& client : clients)
      done += client.done(kind);
    EXPECT_TRUE(done > 0 || !Client::must_succeed(kind)) << "operation " << kind << " never succeeded";
  }
  EXPECT_EQ(scene.service.holds(), 0U);
  EXPECT_TRUE(scene.machine.hold().has_value());
}

} // namespace
} // namespace stopvisor::stopper::testing
