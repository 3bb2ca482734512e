// SPDX-License-Identifier: Apache-2.0
// Searches the stopper's interleavings: `exhaustive` the small scenarios, `random` seeded large ones.
//
//   sched_tests exhaustive [--bound N] [--scenario NAME] [--replay TRACE]
//   sched_tests random [--count N] [--first SEED] [--replay SEED]
//
// How much, where the options do not say: STOPVISOR_TEST_MODE, one of quick, full (the default) and long.
// Exit status: 0 nothing found, 1 a violation (printed with what replays it), 2 wrong usage.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include "tests/sched/scenarios.h"

namespace stopvisor::sched {
namespace {

struct Arguments {
  std::string verb;
  std::string scenario;
  std::string replay;
  int bound = -1; // each scenario's own
  uint64_t first = 1;
  uint64_t count = 0; // the mode's
};

enum class Mode { kQuick, kFull, kLong };

Mode mode() {
  const char* const word = std::getenv("STOPVISOR_TEST_MODE");
  if (word == nullptr)
    return Mode::kFull;
  return std::strcmp(word, "quick") == 0  ? Mode::kQuick
         : std::strcmp(word, "long") == 0 ? Mode::kLong
                                          : Mode::kFull;
}

// A sanitizer makes all this tens of times slower; what it looks for is not a matter of depth.
#if defined(STOPVISOR_ASAN) || defined(STOPVISOR_SCHED_TSAN)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

unsigned bound_of(const NamedScenario& scenario) {
  const unsigned less = (mode() == Mode::kQuick ? 1 : 0) + (kSanitized ? 2 : 0);
  return scenario.bound > less ? scenario.bound - less : 0;
}

uint64_t random_count() {
  const uint64_t count = mode() == Mode::kQuick ? 30'000 : mode() == Mode::kFull ? 200'000 : 20'000'000;
  return kSanitized ? count / 20 : count;
}

using Clock = std::chrono::steady_clock;

int64_t elapsed_ms(Clock::time_point since) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - since).count();
}

// RETURNS: whether everything within the bound passed.
bool search(const NamedScenario& scenario, unsigned bound) {
  const auto begun = Clock::now();
  ExhaustiveStrategy strategy(bound);
  uint64_t schedules = 0, pruned = 0, steps = 0;
  do {
    const ScheduleResult result = run_schedule(strategy, scenario.make, false);
    ++schedules;
    steps += result.steps;
    pruned += result.verdict == Verdict::kPruned ? 1 : 0;
    if (result.verdict == Verdict::kFailed) {
      std::printf("VIOLATION in %s, schedule %llu: %s\nreplay: exhaustive --scenario %s --replay %s\n",
                  scenario.name, static_cast<unsigned long long>(schedules), result.violation.c_str(),
                  scenario.name, strategy.trace().c_str());
      return false;
    }
  } while (strategy.next_schedule());
  std::printf("%-22s %u preemptions: %8llu schedules (%llu to their end), %llu states, %llu steps, %lld ms\n",
              scenario.name, bound, static_cast<unsigned long long>(schedules),
              static_cast<unsigned long long>(schedules - pruned),
              static_cast<unsigned long long>(strategy.states()), static_cast<unsigned long long>(steps),
              static_cast<long long>(elapsed_ms(begun)));
  std::fflush(stdout);
  return true;
}

int replay(const NamedScenario& scenario, const std::string& trace) {
  ExhaustiveStrategy strategy(0);
  if (!strategy.replay(trace))
    return 2;
  const ScheduleResult result = run_schedule(strategy, scenario.make, true);
  const bool failed = result.verdict == Verdict::kFailed;
  std::printf("%s\n", failed ? ("VIOLATION: " + result.violation).c_str() : "passed");
  return failed ? 1 : 0;
}

// Few preemptions first: what is found is then found in its simplest form.
bool search_all_bounds(const NamedScenario& scenario, const Arguments& arguments) {
  const unsigned most = arguments.bound >= 0 ? static_cast<unsigned>(arguments.bound) : bound_of(scenario);
  for (unsigned bound = 0; bound <= most; ++bound)
    if (!search(scenario, bound))
      return false;
  return true;
}

// One process a scenario, as many at once as there are cores.
int exhaustive(const Arguments& arguments) {
  const unsigned most_at_once = std::max(1u, std::thread::hardware_concurrency());
  unsigned running = 0;
  int passed = 0, failed = 0;
  const auto reap = [&] {
    int status = 0;
    if (wait(&status) > 0) {
      --running;
      ++(WIFEXITED(status) && WEXITSTATUS(status) == 0 ? passed : failed);
    }
  };
  for (const NamedScenario& scenario : small_scenarios()) {
    if (!arguments.scenario.empty() && arguments.scenario != scenario.name)
      continue;
    if (!arguments.replay.empty())
      return replay(scenario, arguments.replay);
    while (running >= most_at_once)
      reap();
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
      const bool good = search_all_bounds(scenario, arguments);
      std::fflush(stdout);
      _exit(good ? 0 : 1);
    }
    if (child < 0)
      return 1;
    ++running;
  }
  while (running > 0)
    reap();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed > 0 ? 1 : passed > 0 ? 0 : 2;
}

bool run_seed(uint64_t seed, bool tracing, uint64_t& steps) {
  RandomStrategy strategy(seed);
  const ScheduleResult result = run_schedule(strategy, [seed] { return random_scenario(seed); }, tracing);
  steps += result.steps;
  if (result.verdict == Verdict::kPassed)
    return true;
  std::printf("VIOLATION with seed %llu: %s\nreplay: random --replay %llu\n", static_cast<unsigned long long>(seed),
              result.violation.c_str(), static_cast<unsigned long long>(seed));
  return false;
}

int random_schedules(const Arguments& arguments) {
  uint64_t steps = 0;
  if (!arguments.replay.empty())
    return run_seed(std::strtoull(arguments.replay.c_str(), nullptr, 10), true, steps) ? 0 : 1;
  const auto begun = Clock::now();
  const uint64_t count = arguments.count > 0 ? arguments.count : random_count();
  for (uint64_t n = 0; n < count; ++n)
    if (!run_seed(arguments.first + n, false, steps)) {
      std::printf("0 passed, 1 failed\n");
      return 1;
    }
  std::printf("%llu random schedules, seeds %llu to %llu: %llu steps, %lld ms\n",
              static_cast<unsigned long long>(count), static_cast<unsigned long long>(arguments.first),
              static_cast<unsigned long long>(arguments.first + count - 1), static_cast<unsigned long long>(steps),
              static_cast<long long>(elapsed_ms(begun)));
  std::printf("1 passed, 0 failed\n");
  return 0;
}

bool parse(int count, char** words, Arguments& arguments) {
  if (count < 2)
    return false;
  arguments.verb = words[1];
  for (int n = 2; n + 1 < count; n += 2) {
    const char* const value = words[n + 1];
    if (std::strcmp(words[n], "--bound") == 0)
      arguments.bound = static_cast<int>(std::strtol(value, nullptr, 10));
    else if (std::strcmp(words[n], "--scenario") == 0)
      arguments.scenario = value;
    else if (std::strcmp(words[n], "--replay") == 0)
      arguments.replay = value;
    else if (std::strcmp(words[n], "--first") == 0)
      arguments.first = std::strtoull(value, nullptr, 10);
    else if (std::strcmp(words[n], "--count") == 0)
      arguments.count = std::strtoull(value, nullptr, 10);
    else
      return false;
  }
  return count % 2 == 0;
}

} // namespace
} // namespace stopvisor::sched

int main(int count, char** words) {
  using namespace stopvisor::sched;
  Arguments arguments;
  if (parse(count, words, arguments)) {
    if (arguments.verb == "exhaustive")
      return exhaustive(arguments);
    if (arguments.verb == "random")
      return random_schedules(arguments);
  }
  std::fprintf(stderr, "usage: sched_tests exhaustive [--bound N] [--scenario NAME] [--replay TRACE]\n"
                       "       sched_tests random [--count N] [--first SEED] [--replay SEED]\n");
  return 2;
}
