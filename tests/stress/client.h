// SPDX-License-Identifier: Apache-2.0
// One thread that asks for stops of every kind, at random, and judges each answer.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "tests/stress/random.h"
#include "tests/stress/target.h"

namespace stopvisor::stress {

// What a callback does besides its work.
enum class Mood { kFine, kFails, kThrows, kCallsBack };

class Client {
public:
  // `number` from 1. Which operations it makes, and with what, follows from the seed alone.
  Client(Target& target, uint64_t seed, uint32_t number);

  // CONTEXT: its own thread. Ends after so many operations, or when the VM has ended or somebody has failed.
  void run(uint32_t operations);

private:
  static constexpr int kFailure = 7; // what a callback that fails returns
  static constexpr uint32_t kWorks = 4;

  // A callback that counts its calls.
  struct Callback;

  // What an operation asked for; its answer is judged against it.
  struct Asked {
    Operation operation;
    Mood mood;
    stopper::StopOptions options;
    uint32_t least; // calls of the callback where the stop was made
    uint32_t most;
  };

  [[nodiscard]] Operation pick();
  void perform(Operation operation);
  [[nodiscard]] Asked ask(Operation operation, uint32_t least, uint32_t most);
  [[nodiscard]] uint32_t some_cpu();
  [[nodiscard]] stopper::CpuMask some_cpus();
  // Of `mask`, those that are online all the time; those that may be.
  [[nodiscard]] stopper::CpuMask always_of(const stopper::CpuMask& mask) const;
  [[nodiscard]] stopper::CpuMask ever_of(const stopper::CpuMask& mask) const;

  void run_under_stop(Operation operation);
  void hold();
  void stop_one();
  void stop_one_no_wait();
  void stop_two();
  void stop_cpus(bool only_try);
  void stop_machine();
  void partial_hold();
  void hotplug();
  void await_works();

  // RETURNS whether the stop was made; what it found wrong is in the journal.
  bool judge(const Asked& asked, const Callback& callback, const stopper::StopError* error, int result,
             std::initializer_list<std::optional<stopper::StopErrc>> allowed = {});
  void judge_outcome(const Asked& asked, const Callback& callback,
                     const std::expected<stopper::StopOutcome, stopper::StopError>& outcome,
                     std::initializer_list<std::optional<stopper::StopErrc>> allowed);
  void fail(const Asked& asked, const std::string& what);

  struct SmallWork {
    stopper::Work work;
    std::atomic<uint64_t> calls{0};
    uint64_t queued = 0;
  };
  static stopper::Invocation count_call(void* calls, stopper::CpuId cpu) noexcept;

  Target& target_;
  stopper::StopMachine& machine_;
  stopper::StopService& service_;
  Random random_;
  const uint32_t number_;
  std::array<SmallWork, kWorks> works_;
};

} // namespace stopvisor::stress
