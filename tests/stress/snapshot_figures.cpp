// SPDX-License-Identifier: Apache-2.0
// What a snapshot of a guest that rewrites its memory costs it, live and stopped, and how fast it is written.
//
//   snapshot_figures DIRECTORY [ROUNDS [MIB]]
//
// tests/stress/snapshot_figures.py runs it, and QEMU's background snapshot of the same guest.
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "tools/probe/probe_view.h"
#include "tools/snapshot/live_snapshot.h"
#include "tools/snapshot/vm_capture.h"
#include "vmm/vm.h"

namespace stopvisor::snapshot {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

double ms(Clock::duration time) {
  return std::chrono::duration<double, std::milli>(time).count();
}

class Guest {
public:
  Guest(uint64_t memory_mib, vmm::MemoryBacking backing) {
    vmm::VmConfig config;
    config.name = "figures";
    config.memory_bytes = memory_mib << 20;
    config.backing = backing;
    config.cmdline = "scenarios=dirty dirty_mib=" + std::to_string(dirty_mib(memory_mib));
    auto made = vmm::Vm::create(config);
    if (!made || !(*made)->start())
      return;
    vm = std::move(*made);
    // Twice over everything: then there is nothing left that was never touched.
    const uint64_t pages = 2 * (dirty_mib(memory_mib) << 8);
    while (vm->state() == vmm::VmState::kRunning && written() < pages)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  static uint64_t dirty_mib(uint64_t memory_mib) { return memory_mib == 1024 ? 900 : memory_mib * 7 / 8; }
  [[nodiscard]] uint64_t written() const {
    uint64_t pages = 0;
    (void)vm->memory().read(vmm::Gpa{probe::cpu_results_gpa(0) + offsetof(probe::CpuResults, dirty_pages)},
                            std::as_writable_bytes(std::span(&pages, 1)));
    return pages;
  }
  // Pages a second, over a while in which nobody disturbs it.
  [[nodiscard]] double rate() const {
    const uint64_t before = written();
    const auto begin = Clock::now();
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    return static_cast<double>(written() - before) / Seconds(Clock::now() - begin).count();
  }
  std::unique_ptr<vmm::Vm> vm;
};

// Of the rounds of one size.
struct Rounds {
  std::vector<double> held, callback, total;
};

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return values.empty() ? 0 : *middle;
}

bool live(Guest& guest, const std::string& directory, uint64_t memory_mib, const char* backing, Rounds& rounds) {
  const double free_rate = guest.rate();
  LiveOptions options;
  options.create.operation = "figures";
  const uint64_t before = guest.written();
  const auto begin = Clock::now();
  Clock::time_point instant;
  options.at_instant = [&] { instant = Clock::now(); };
  const auto made = create_live(*guest.vm, directory, options);
  const auto total = Clock::now() - begin;
  const double rate = static_cast<double>(guest.written() - before) / Seconds(total).count();
  std::filesystem::remove_all(directory);
  if (!made) {
    std::fprintf(stderr, "snapshot_figures: %s\n", made.error().message().c_str());
    return false;
  }
  const vmm::FreezeFigures& figures = made->figures;
  rounds.held.push_back(ms(made->held_for));
  rounds.callback.push_back(ms(made->callback));
  rounds.total.push_back(ms(total));
  std::printf("%7llu %7s %9.2f %9.2f %10.0f %8.0f %9.0f %9.0f %9.0f %9.0f %10llu %9.2f\n",
              static_cast<unsigned long long>(memory_mib), backing, ms(made->held_for), ms(made->callback),
              ms(instant - begin), ms(total), static_cast<double>(figures.preserved_bytes) / (1 << 20),
              static_cast<double>(figures.side_peak_bytes) / (1 << 20), ms(figures.throttled_for),
              static_cast<double>(figures.early_writes), static_cast<unsigned long long>(figures.late_runs),
              rate / free_rate);
  std::fflush(stdout);
  return true;
}

// Seconds to write `bytes` of guest memory to a file and sync it, by one thread.
double plain_write(const Guest& guest, const std::string& file, uint64_t bytes) {
  constexpr uint64_t kChunk = 8 << 20;
  const auto slot = guest.vm->memory().slots().front();
  const auto begin = Clock::now();
  const vmm::UniqueFd fd(::open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!fd)
    return 0;
  uint64_t left = bytes;
  // From the area that is rewritten: it has no page of zeros.
  for (uint64_t at = probe::kDirtyGpa; left != 0;) {
    const ssize_t done = ::write(fd.get(), slot.host + at, std::min({left, kChunk, slot.size_bytes - at}));
    if (done <= 0)
      return 0;
    left -= static_cast<uint64_t>(done);
    at += static_cast<uint64_t>(done);
    if (at >= slot.size_bytes)
      at = probe::kDirtyGpa;
  }
  if (::fsync(fd.get()) != 0)
    return 0;
  return Seconds(Clock::now() - begin).count();
}

// A stopped snapshot, and a plain write of as many bytes, one after the other under one hold.
bool stopped(Guest& guest, const std::string& directory) {
  bool good = false;
  const auto stop = guest.vm->stops().run([&](stopper::StopContext&) {
    const auto contents = contents_of("figures", *guest.vm);
    const auto memory = memory_of("figures", *guest.vm);
    const auto begin = Clock::now();
    const auto made = contents ? create(directory, *contents, *memory, {}) : std::unexpected(contents.error());
    const double own = Seconds(Clock::now() - begin).count();
    std::filesystem::remove_all(directory);
    if (!made)
      return 0;
    const uint64_t bytes = made->manifest.data_pages * kPageBytes;
    const double plain = plain_write(guest, directory + "-plain", bytes);
    std::filesystem::remove(directory + "-plain");
    good = plain != 0;
    const double mib = static_cast<double>(bytes) / (1 << 20);
    std::printf(
        "        stopped snapshot %.0f MiB in %.2f s, %.0f MiB/s; plain write %.2f s, %.0f MiB/s: %.2f of it\n",
        mib, own, mib / own, plain, mib / plain, plain / own);
    std::fflush(stdout);
    return 0;
  });
  return stop.has_value() && good;
}

// What else could be done in the hold, for comparison: fork() with a child that would write, and protecting all of
// memory there instead of before.
bool others(Guest& guest, uint64_t memory_mib, const char* backing) {
  const auto memory = guest.vm->memory().slots().front().host;
  double fork_ms = 0;
  double arm_ms = 0;
  bool good = true;
  const auto stop = guest.vm->stops().run([&](stopper::StopContext&) {
    auto begin = Clock::now();
    const pid_t child = ::fork();
    if (child == 0)
      ::_exit(0);
    fork_ms = ms(Clock::now() - begin);
    good = child > 0 && ::waitpid(child, nullptr, 0) == child;
    auto frozen = vmm::FrozenMemory::create({memory, guest.vm->memory().size_bytes()}, {});
    begin = Clock::now();
    good = good && frozen && (*frozen)->arm() && (*frozen)->freeze();
    arm_ms = ms(Clock::now() - begin);
    return 0;
  });
  if (stop && good)
    std::printf("%7llu %7s fork() %.2f ms, protecting all %.2f ms\n", static_cast<unsigned long long>(memory_mib),
                backing, fork_ms, arm_ms);
  return stop.has_value() && good;
}

} // namespace
} // namespace stopvisor::snapshot

int main(int argc, char** argv) {
  using namespace stopvisor;
  if (argc < 2)
    return 2;
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 3; // NOLINT(cert-err34-c): 0 is none
  const std::string directory = std::string(argv[1]) + "/snapshot";
  std::printf("    MiB backing   held ms  stop ms  arming ms   total ms aside MiB  peak MiB throttled early    "
              "late runs  guest\n");
  for (const auto backing : {vmm::MemoryBacking::kAnonymous, vmm::MemoryBacking::kMemfd})
    for (const uint64_t mib : {256U, 1024U, 2048U, 4096U}) {
      if (argc > 3 && std::atoi(argv[3]) != static_cast<int>(mib)) // NOLINT
        continue;
      snapshot::Guest guest(mib, backing);
      if (guest.vm == nullptr)
        return 1;
      snapshot::Rounds figures;
      if (!snapshot::others(guest, mib, vmm::name_of(backing)))
        return 1;
      for (int round = 0; round < rounds; ++round)
        if (!snapshot::live(guest, directory, mib, vmm::name_of(backing), figures))
          return 1;
      std::printf("%7llu %7s medians: held %.2f ms, of which in the callback %.2f ms; total %.0f ms\n",
                  static_cast<unsigned long long>(mib), vmm::name_of(backing), snapshot::median(figures.held),
                  snapshot::median(figures.callback), snapshot::median(figures.total));
      for (int round = 0; round < rounds && mib == 1024 && backing == vmm::MemoryBacking::kAnonymous; ++round)
        if (!snapshot::stopped(guest, directory))
          return 1;
    }
  return 0;
}
