// SPDX-License-Identifier: Apache-2.0
#include "tools/bench/kinds_bench.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <vector>

#include "tools/bench/running_vm.h"

namespace stopvisor::tools {
namespace {

using Clock = std::chrono::steady_clock;
using stopper::CpuMask;
using stopper::StopError;
using vmm::Error;

constexpr uint32_t kBlocks = 8; // with and without lift take turns, and so do the kinds in them

struct Series {
  std::vector<int64_t> one, two, all;
};

// One stop of each kind, of other vCPUs at each turn; each timed from the call to what the caller asked for: the
// callback's return for one vCPU, held vCPUs for more.
std::expected<void, StopError> measure_each(stopper::StopMachine& machine, uint32_t cpus, uint32_t turn,
                                            Series& series) {
  const auto hold = [&](const CpuMask* mask, std::vector<int64_t>& times) -> std::expected<void, StopError> {
    let_run(cpus);
    const auto begin = Clock::now();
    const auto stop = machine.hold({.deadline = begin + kTimeout}, mask);
    times.push_back((Clock::now() - begin).count());
    if (!stop)
      return std::unexpected(stop.error());
    return {};
  };
  let_run(cpus);
  const auto begin = Clock::now();
  const auto one =
      machine.stop_one_cpu(turn % cpus, [](stopper::StopContext&) { return 0; }, {.deadline = begin + kTimeout});
  series.one.push_back((Clock::now() - begin).count());
  if (!one)
    return std::unexpected(one.error());
  if (cpus >= 2) {
    CpuMask mask = CpuMask::of(turn % cpus);
    mask.set((turn + 1) % cpus);
    if (auto held = hold(&mask, series.two); !held)
      return held;
  }
  return hold(nullptr, series.all);
}

KindFigures figures_of(Series series) {
  KindFigures figures{
      .one = percentiles(std::move(series.one)), .two = std::nullopt, .all = percentiles(std::move(series.all))};
  if (!series.two.empty())
    figures.two = percentiles(std::move(series.two));
  return figures;
}

} // namespace

std::expected<void, Error> measure_kinds(StopFigures& figures, const StopBenchOptions& options) {
  auto running = RunningVm::start(figures.cpus);
  if (!running)
    return std::unexpected(running.error());
  vmm::Vm& vm = *(*running)->vm;
  Series lifted, plain;
  const uint32_t rounds = std::max(options.rounds / 4 / kBlocks, 1u);
  for (uint32_t block = 0; block < kBlocks; ++block)
    for (const bool lift : {true, false}) {
      vm.allow_lifts(lift);
      for (uint32_t n = 0; n < rounds; ++n)
        if (auto done = measure_each(vm.stop_machine(), figures.cpus, block * rounds + n, lift ? lifted : plain);
            !done)
          return std::unexpected(vm.explain("bench", done.error()));
    }
  figures.lifted = figures_of(std::move(lifted));
  figures.plain = figures_of(std::move(plain));
  return {};
}

} // namespace stopvisor::tools
