// SPDX-License-Identifier: Apache-2.0
#include "tools/bench/stop_bench.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <vector>

#include "tools/bench/bare_kick.h"
#include "tools/bench/child.h"
#include "tools/bench/kinds_bench.h"
#include "tools/bench/qemu_peer.h"
#include "tools/bench/running_vm.h"
#include "tools/client/client.h"
#include "vmm/urgent_thread.h"

namespace stopvisor::tools {
namespace {

using Clock = std::chrono::steady_clock;
using vmm::Error;

constexpr int kBlocks = 10; // the floor and the stop take turns, so that the host's drift hits both

int64_t since(Clock::time_point begin) {
  return (Clock::now() - begin).count();
}

// Floor and stop, block by block in turn; whoever does not run is held, so that it takes no time from the other.
std::expected<void, Error> measure_in_process(StopFigures& figures, const StopBenchOptions& options) {
  auto bare = BareKick::boot(figures.cpus);
  if (!bare)
    return std::unexpected(bare.error());
  (*bare)->kick_all();
  auto running = RunningVm::start(figures.cpus);
  if (!running)
    return std::unexpected(running.error());
  stopper::StopMachine& machine = (*running)->vm->stop_machine();
  std::vector<int64_t> floor, held, release;
  for (int block = 0; block < kBlocks; ++block) {
    auto rest = machine.hold();
    if (!rest)
      return std::unexpected((*running)->vm->explain("bench", rest.error()));
    (*bare)->let_go();
    for (uint32_t n = 0; n < options.rounds / kBlocks; ++n) {
      let_run(figures.cpus);
      floor.push_back((*bare)->kick_all());
      (*bare)->let_go();
    }
    let_run(figures.cpus);
    (*bare)->kick_all();
    rest->release();
    for (uint32_t n = 0; n < options.rounds / kBlocks; ++n) {
      let_run(figures.cpus);
      const auto begin = Clock::now();
      auto stop = machine.hold({.deadline = begin + kTimeout});
      held.push_back(since(begin));
      if (!stop)
        return std::unexpected((*running)->vm->explain("bench", stop.error()));
      const auto end = Clock::now();
      stop->release();
      release.push_back(since(end));
    }
  }
  figures.floor = percentiles(std::move(floor));
  figures.held = percentiles(std::move(held));
  figures.release = percentiles(std::move(release));
  return {};
}

// The guest's largest jump over `stop`, by all vCPUs, each with its counters zeroed before.
std::expected<int64_t, Error> gap_around(RunningVm& running, uint32_t cpus, bool stop) {
  const auto alive = [&] { return running.alive(); };
  if (auto reset = running.probe.reset_counters(cpus, kPatience, alive); !reset)
    return std::unexpected(reset.error());
  if (stop) {
    auto outcome = running.vm->stops().run([](stopper::StopContext&) { return 0; });
    if (!outcome)
      return std::unexpected(running.vm->explain("bench", outcome.error()));
  }
  std::this_thread::sleep_for(std::chrono::microseconds(500));
  const uint64_t hz = running.probe.tsc_hz();
  if (hz == 0)
    return std::unexpected(Error{"bench", "gap", "the guest does not know the frequency of its TSC"});
  return static_cast<int64_t>(static_cast<double>(running.probe.totals(cpus).gap_max_ticks) * 1e9 /
                              static_cast<double>(hz));
}

std::expected<void, Error> measure_gap(StopFigures& figures, const StopBenchOptions& options) {
  auto running = RunningVm::start(figures.cpus);
  if (!running)
    return std::unexpected(running.error());
  std::vector<int64_t> with, without;
  for (uint32_t n = 0; n < std::max(options.rounds / 5, 1u); ++n)
    for (const bool stop : {true, false}) {
      auto gap = gap_around(**running, figures.cpus, stop);
      if (!gap)
        return std::unexpected(gap.error());
      (stop ? with : without).push_back(*gap);
    }
  figures.gap = percentiles(std::move(with));
  figures.gap_idle = percentiles(std::move(without));
  return {};
}

// A VM in a process of its own, and a client here, as users have it.
std::expected<void, Error> measure_socket(StopFigures& figures, const StopBenchOptions& options) {
  const std::string name = "bench-" + std::to_string(getpid()) + "-" + std::to_string(figures.cpus);
  auto child = Child::start({"/proc/self/exe", "run", "--name", name, "--cpus", std::to_string(figures.cpus),
                             "--memory", "64M", "--serial", "none", "--cmdline", "scenarios=gap"});
  if (!child)
    return std::unexpected(child.error());
  std::expected<Client, Error> client = std::unexpected(Error{});
  for (int waited_ms = 0; waited_ms < 20'000 && !client && child->alive(); waited_ms += 10) {
    usleep(10'000); // until its socket is there
    client = Client::connect("bench", name);
  }
  if (!client)
    return std::unexpected(client.error());
  std::this_thread::sleep_for(std::chrono::milliseconds(200 + 20 * figures.cpus)); // the guest starts its vCPUs
  std::vector<int64_t> pause, resume;
  for (uint32_t n = 0; n < options.rounds; ++n) {
    let_run(figures.cpus);
    auto begin = Clock::now();
    if (auto paused = client->pause(kTimeout); !paused)
      return paused;
    pause.push_back(since(begin));
    begin = Clock::now();
    if (auto resumed = client->resume(); !resumed)
      return resumed;
    resume.push_back(since(begin));
  }
  figures.pause = percentiles(std::move(pause));
  figures.resume = percentiles(std::move(resume));
  return {};
}

std::expected<void, Error> measure_qemu(StopFigures& figures, const StopBenchOptions& options) {
  auto peer = QemuPeer::boot(figures.cpus);
  if (!peer)
    return std::unexpected(peer.error());
  std::this_thread::sleep_for(std::chrono::milliseconds(300 + 20 * figures.cpus)); // the guest starts its vCPUs
  std::vector<int64_t> stop, cont;
  for (uint32_t n = 0; n < std::max(options.rounds / 4, 1u); ++n) {
    let_run(figures.cpus);
    for (const auto& [command, series] : {std::pair{"stop", &stop}, std::pair{"cont", &cont}}) {
      auto took = peer->execute(command);
      if (!took)
        return std::unexpected(took.error());
      series->push_back(*took);
    }
  }
  figures.qemu_stop = percentiles(std::move(stop));
  figures.qemu_cont = percentiles(std::move(cont));
  return {};
}

} // namespace

std::expected<StopFigures, Error> bench_stop(uint32_t cpus, const StopBenchOptions& options) {
  vmm::make_this_thread_urgent(); // as the threads of the control socket are; the floor has the same
  StopFigures figures;
  figures.cpus = cpus;
  using Part = std::expected<void, Error> (*)(StopFigures&, const StopBenchOptions&);
  std::vector<Part> parts{measure_in_process, measure_kinds, measure_gap, measure_socket};
  if (options.qemu)
    parts.push_back(measure_qemu);
  for (const Part part : parts)
    if (auto measured = part(figures, options); !measured)
      return std::unexpected(measured.error());
  return figures;
}

} // namespace stopvisor::tools
