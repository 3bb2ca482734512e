// SPDX-License-Identifier: Apache-2.0
#include "tools/demonstration/demonstration.h"

#include <array>
#include <chrono>
#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <thread>

#include "tools/bench/percentiles.h"
#include "tools/demonstration/timeline.h"
#include "tools/probe/probe_view.h"
#include "tools/stopvisor/output.h"
#include "vmm/urgent_thread.h"
#include "vmm/vm.h"

namespace stopvisor::tools {
namespace {

using vmm::Error;
using Step = std::expected<void, Error>;

constexpr uint32_t kCpus = 4;
constexpr unsigned kPatience = 30; // seconds for anything the guest is asked to do
constexpr uint64_t kUpdates = 10'000;
constexpr uint64_t kRewrites = 1'000;
constexpr int kStops = 1'000;

[[gnu::format(printf, 1, 2)]] void say(const char* format, ...) {
  char line[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  print_text(line);
}

double microseconds(int64_t nanoseconds) {
  return static_cast<double>(nanoseconds) / 1000.0;
}

Error wrong(const char* step, const std::string& reason) {
  return {"demo", step, reason};
}

class Demonstration {
public:
  explicit Demonstration(vmm::Vm& vm) : vm_(vm), probe_(vm.memory()) {}

  Step run() {
    for (const auto step :
         {&Demonstration::boot, &Demonstration::update_ledger, &Demonstration::update_unstopped,
          &Demonstration::rewrite_code, &Demonstration::show_one_stop, &Demonstration::time_stops})
      if (auto done = (this->*step)(); !done)
        return done;
    return {};
  }

private:
  bool alive() const { return vm_.state() != vmm::VmState::kEnded; }

  // Runs `change` under a stop of its own.
  template <class Change>
  Step under_stop(Change change) {
    auto outcome = vm_.stops().run(
        [&](stopper::StopContext&) {
          change();
          return 0;
        },
        {.deadline = stopper::Clock::now() + std::chrono::seconds(5)});
    if (!outcome)
      return std::unexpected(vm_.explain("demo", outcome.error()));
    return {};
  }

  Step choose(uint32_t scenarios) {
    probe_.choose_scenarios(scenarios);
    return probe_.reset_counters(kCpus, kPatience, [this] { return alive(); });
  }

  // Lets every vCPU do at least one more pass of what it is doing, so that the last change was looked at.
  Step settle() {
    std::array<uint64_t, kCpus> before{};
    for (uint32_t cpu = 0; cpu < kCpus; ++cpu)
      before[cpu] = probe_.cpu(cpu).slices;
    for (unsigned waited = 0; waited < kPatience * 1000; ++waited) {
      bool all = true;
      for (uint32_t cpu = 0; cpu < kCpus; ++cpu)
        all = all && probe_.cpu(cpu).slices > before[cpu] + 1;
      if (all)
        return {};
      if (!alive())
        return std::unexpected(wrong("wait for the guest", "the virtual machine has ended"));
      std::this_thread::sleep_for(std::chrono::milliseconds(1)); // the guest cannot wake us
    }
    return std::unexpected(wrong("wait for the guest", "a vCPU makes no progress"));
  }

  Step boot() {
    say("A guest with %u vCPUs starts on /dev/kvm ... ", kCpus);
    const auto begin = std::chrono::steady_clock::now();
    if (auto started = vm_.start(); !started)
      return started;
    if (auto running = probe_.await_running(kCpus, kPatience, [this] { return alive(); }); !running)
      return running;
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
    say("all of them run (%.0f ms).\n\n", took.count());
    return {};
  }

  Step update_ledger() {
    if (auto chosen = choose(probe::kLedger); !chosen)
      return chosen;
    say("1. %" PRIu64 " updates of %u words on %u pages, each under a stop; the vCPUs read them without a lock.\n",
        kUpdates, probe::kLedgerWords, probe::kLedgerPages);
    const auto begin = std::chrono::steady_clock::now();
    for (uint64_t value = 1; value <= kUpdates; ++value)
      if (auto done = under_stop([&] { probe_.write_ledger(value); }); !done)
        return done;
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    if (auto done = settle(); !done)
      return done;
    const ProbeTotals totals = probe_.totals(kCpus);
    say("   the guest: %" PRIu64 " reads, %" PRIu64 " torn   (%.1f s, %.0f updates a second)\n\n",
        totals.ledger_reads, totals.ledger_torn, took.count(), static_cast<double>(kUpdates) / took.count());
    if (totals.ledger_torn != 0)
      return std::unexpected(wrong("ledger", "the guest saw a torn update under a stop"));
    for (uint32_t cpu = 0; cpu < kCpus; ++cpu)
      if (probe_.cpu(cpu).ledger_last != kUpdates)
        return std::unexpected(wrong("ledger", "vCPU " + std::to_string(cpu) + " missed the last update"));
    return {};
  }

  Step update_unstopped() {
    if (auto chosen = choose(probe::kLedger); !chosen)
      return chosen;
    say("2. The same without stopping, until the detector has found something (at most 10 s).\n");
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    uint64_t updates = 0;
    while (alive() && (updates < kUpdates || probe_.totals(kCpus).ledger_torn == 0) &&
           std::chrono::steady_clock::now() < end)
      probe_.write_ledger(kUpdates + ++updates);
    if (auto done = settle(); !done)
      return done;
    const ProbeTotals totals = probe_.totals(kCpus);
    say("   the guest: %" PRIu64 " reads, %" PRIu64 " torn   (%" PRIu64 " updates)\n\n", totals.ledger_reads,
        totals.ledger_torn, updates);
    if (totals.ledger_torn == 0)
      return std::unexpected(wrong("ledger without stops", "the detector found nothing: it proves nothing"));
    return {};
  }

  Step rewrite_code() {
    if (auto chosen = choose(probe::kCode); !chosen)
      return chosen;
    say("3. %" PRIu64
        " rewrites of %u functions that straddle pages and cache lines, while every vCPU calls them.\n",
        kRewrites, probe::kCodeSites);
    uint8_t last = 0;
    for (uint64_t n = 1; n <= kRewrites; ++n) {
      last = static_cast<uint8_t>(1 + n % 250);
      if (auto done = under_stop([&] { probe_.rewrite_code(last); }); !done)
        return done;
    }
    if (auto done = settle(); !done)
      return done;
    const ProbeTotals totals = probe_.totals(kCpus);
    say("   the guest: %" PRIu64 " passes over all of them, %" PRIu64 " results neither old nor new\n\n",
        totals.code_calls, totals.code_torn);
    if (totals.code_torn != 0)
      return std::unexpected(wrong("code", "the guest saw a torn rewrite under a stop"));
    const uint64_t expected = 0x0101010101010101ULL * last;
    for (uint32_t cpu = 0; cpu < kCpus; ++cpu)
      if (probe_.cpu(cpu).code_last != expected)
        return std::unexpected(wrong("code", "vCPU " + std::to_string(cpu) + " still runs old code"));
    return {};
  }

  Step show_one_stop() {
    if (auto done = under_stop([] {}); !done)
      return done;
    say("4. One stop, in microseconds ('.' in the guest, '-' out, '#' held):\n");
    print_text(draw_timeline(vm_, vm_.stops().last_report(), 40));
    say("\n");
    return {};
  }

  Step time_stops() {
    if (auto chosen = choose(probe::kGap); !chosen)
      return chosen;
    std::vector<int64_t> to_held, hold;
    for (int n = 0; n < kStops; ++n) {
      if (auto done = under_stop([] {}); !done)
        return done;
      const stopper::StopReport report = vm_.stops().last_report();
      to_held.push_back(report.all_held_ns - report.requested_ns);
      hold.push_back(report.hold_ns());
    }
    if (auto done = settle(); !done)
      return done;
    const Percentiles held = percentiles(to_held);
    const Percentiles length = percentiles(hold);
    say("5. %d stops of 4 busy vCPUs: asked to all held p50 %.0f us, p99 %.0f us; hold p50 %.0f us, p99 %.0f us.\n",
        kStops, microseconds(held.p50), microseconds(held.p99), microseconds(length.p50), microseconds(length.p99));
    const uint64_t hz = probe_.tsc_hz();
    const uint64_t ticks = probe_.totals(kCpus).gap_max_ticks;
    if (hz != 0)
      say("   the guest: its largest jump of the clock in all that time was %.0f us (host scheduling included).\n",
          static_cast<double>(ticks) * 1e6 / static_cast<double>(hz));
    else
      say("   the guest: its largest jump of the clock in all that time was %" PRIu64 " TSC ticks.\n", ticks);
    return {};
  }

  vmm::Vm& vm_;
  ProbeView probe_;
};

} // namespace

std::expected<void, Error> demonstrate() {
  vmm::VmConfig config;
  config.name = "the probe guest";
  config.cpus = kCpus;
  config.memory_bytes = 64ULL << 20;
  config.cmdline = "scenarios=ledger";
  auto vm = vmm::Vm::create(config);
  if (!vm)
    return std::unexpected(vm.error());
  vmm::make_this_thread_urgent(); // as the threads of the control socket are
  auto shown = Demonstration(**vm).run();
  (*vm)->request_end({vmm::EndKind::kRequested, ""});
  const vmm::VmEnd end = (*vm)->wait_for_end();
  if (end.kind != vmm::EndKind::kRequested)
    return std::unexpected(wrong("guest", end.message));
  if (shown)
    say("\nAll as it should be.\n");
  return shown;
}

} // namespace stopvisor::tools
