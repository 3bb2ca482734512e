// SPDX-License-Identifier: Apache-2.0
// Random mixed operations on the real KVM: the whole stop family at once, on VMs of 1 to 16 vCPUs, with signals
// lost.
//
//   kvm_stress [--seed N] [--seconds S] [--tear]
//
// What each client does follows from the seed; how the threads meet does not. How long, where the options do not
// say: STOPVISOR_TEST_MODE, one of quick (10 s), full (2 min, under AddressSanitizer 1 min; the default) and long
// (1 h). With --tear the ledger is updated without a stop, and the run passes where that is noticed: a test of the
// test. Exit status: 0 nothing found, 1 something was, 2 wrong usage, 77 no KVM.
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>

#include "tests/sanitized.h"
#include "tests/stress/round.h"
#include "tests/stress/watch.h"
#include "vmm/kvm_system.h"

namespace stopvisor::stress {
namespace {

using Clock = std::chrono::steady_clock;

struct Arguments {
  uint64_t seed = 0;
  uint64_t seconds = 0;
  bool tears = false;
};

uint64_t seconds_of_mode() {
  const char* const word = std::getenv("STOPVISOR_TEST_MODE");
  const std::string mode = word == nullptr ? "full" : word;
  return mode == "quick" ? 10 : mode == "long" ? 3600 : kAddressSanitizer ? 60 : 120;
}

// RETURNS false for wrong usage.
bool parse(int count, char** words, Arguments& arguments) {
  arguments.seed = std::random_device{}();
  arguments.seconds = seconds_of_mode();
  for (int n = 1; n < count; ++n) {
    const std::string word = words[n];
    if (word == "--tear") {
      arguments.tears = true;
      continue;
    }
    char* end = nullptr;
    const uint64_t value = n + 1 < count ? std::strtoull(words[n + 1], &end, 0) : 0;
    if (end == nullptr || *end != '\0' || end == words[n + 1])
      return false;
    if (word == "--seed")
      arguments.seed = value;
    else if (word == "--seconds")
      arguments.seconds = value;
    else
      return false;
    ++n;
  }
  return true;
}

void add(RoundTotals& sum, const RoundTotals& one) {
  sum.stops += one.stops;
  sum.resets += one.resets;
  sum.delays += one.delays;
  sum.drops += one.drops;
  sum.ledger_reads += one.ledger_reads;
  sum.io_accesses += one.io_accesses;
  sum.mails += one.mails;
}

unsigned long long number(uint64_t value) {
  return value;
}

void print_counts(const Journal& journal, const RoundTotals& sum) {
  std::printf("%-14s %10s %10s %10s\n", "operation", "done", "too late", "refused");
  for (uint32_t operation = 0; operation < kOperations; ++operation)
    std::printf("%-14s %10llu %10llu %10llu\n", kOperationNames[operation],
                number(journal.counted(operation, Journal::Ending::kDone)),
                number(journal.counted(operation, Journal::Ending::kTooLate)),
                number(journal.counted(operation, Journal::Ending::kRefused)));
  std::printf("%llu stops, %llu resets, %llu signals lost, %llu delays; the guest made %llu ledger passes, "
              "%llu accesses, got %llu mails\n",
              number(sum.stops), number(sum.resets), number(sum.drops), number(sum.delays),
              number(sum.ledger_reads), number(sum.io_accesses), number(sum.mails));
}

void print_failures(const Journal& journal, uint64_t seed, const Round& round) {
  std::printf("FAILED: seed %llu, %s\n", number(seed), round.description().c_str());
  for (const std::string& failure : journal.failures())
    std::printf("  %s\n", failure.c_str());
}

int closing_line(uint64_t passed, uint64_t failed) {
  std::printf("%llu passed, %llu failed, 0 skipped\n", number(passed), number(failed));
  std::fflush(stdout);
  return failed == 0 ? 0 : 1;
}

// Each round's seed starts the same round again, as its only one: --seed N --seconds 0.
int stress(const Arguments& arguments) {
  RoundTotals sum;
  Journal all;
  const auto over = Clock::now() + std::chrono::seconds(arguments.seconds);
  uint64_t rounds = 0;
  do {
    const uint64_t seed = arguments.seed + rounds;
    Round round(mix(seed), arguments.tears, all);
    {
      const Watch watch(all, [&] {
        std::printf("HANG: seed %llu, %s: nothing happened for %d s\n%s", number(seed), round.description().c_str(),
                    Watch::kPatienceSeconds, round.state().c_str());
        print_failures(all, seed, round);
        closing_line(rounds, 1);
        _exit(1); // threads that hang cannot be joined
      });
      add(sum, round.run());
    }
    if (all.failed()) {
      print_failures(all, seed, round);
      print_counts(all, sum);
      const bool as_wanted = arguments.tears && all.failed_only_with("torn ledger");
      return as_wanted ? closing_line(1, 0) : closing_line(rounds, 1);
    }
    ++rounds;
  } while (Clock::now() < over);
  std::printf("seeds %llu to %llu\n", number(arguments.seed), number(arguments.seed + rounds - 1));
  print_counts(all, sum);
  return arguments.tears ? closing_line(0, 1) : closing_line(rounds, 0);
}

} // namespace
} // namespace stopvisor::stress

int main(int count, char** words) {
  using namespace stopvisor;
  stress::Arguments arguments;
  if (!stress::parse(count, words, arguments)) {
    std::fprintf(stderr, "usage: kvm_stress [--seed N] [--seconds S] [--tear]\n");
    return 2;
  }
  if (const auto system = vmm::KvmSystem::open(); !system) {
    std::printf("skipped: no usable KVM here: %s\n0 passed, 0 failed, 1 skipped\n",
                system.error().message().c_str());
    return 77;
  }
  std::printf("seed %llu, %llu s\n", stress::number(arguments.seed), stress::number(arguments.seconds));
  std::fflush(stdout);
  return stress::stress(arguments);
}
