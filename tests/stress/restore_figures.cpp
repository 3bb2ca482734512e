// SPDX-License-Identifier: Apache-2.0
// How long it takes from the begin of a restore to the guest's first instruction, by the size of its memory and by
// how memory is checked.
//
//   restore_figures DIRECTORY [ROUNDS [MIB...]]     snapshots are made in DIRECTORY, and removed
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "tools/probe/probe_view.h"
#include "tools/snapshot/vm_capture.h"
#include "tools/snapshot/vm_restore.h"
#include "tools/snapshot/writer.h"
#include "vmm/absent_memory.h"

namespace stopvisor::snapshot {
namespace {

using Clock = std::chrono::steady_clock;
constexpr uint32_t kCpus = 2;
constexpr uint64_t kMib = 1 << 20;

// When a vCPU was first about to enter the guest, and when one first came out: the first instruction is between
// them. The guest does nothing but accesses of a device, so that a few dozen have run by then.
class FirstEntry final : public vmm::VcpuHooks {
public:
  void at(vmm::VcpuPoint point, uint32_t /*cpu*/) noexcept override {
    if (point == vmm::VcpuPoint::kAfterCheck)
      note(entered_);
    if (point == vmm::VcpuPoint::kOutOfRun && entered_.load(std::memory_order_relaxed) != 0)
      note(left_);
  }
  [[nodiscard]] Clock::time_point entered() const { return Clock::time_point(Clock::duration(await(entered_))); }
  [[nodiscard]] Clock::time_point left() const { return Clock::time_point(Clock::duration(await(left_))); }

private:
  using Stamp = std::atomic<Clock::rep>; // 0: not yet
  static void note(Stamp& stamp) noexcept {
    Clock::rep none = 0;
    if (stamp.compare_exchange_strong(none, Clock::now().time_since_epoch().count(), std::memory_order_relaxed))
      stamp.notify_all();
  }
  static Clock::rep await(const Stamp& stamp) noexcept {
    stamp.wait(0, std::memory_order_relaxed); // a figure by itself
    return stamp.load(std::memory_order_relaxed);
  }
  Stamp entered_{0};
  Stamp left_{0};
};

bool fail(const vmm::Error& error) {
  std::fprintf(stderr, "restore_figures: %s\n", error.message().c_str());
  return false;
}

// A probe guest that has run, with data in most of its memory.
bool make_snapshot(const std::string& directory, uint64_t bytes) {
  vmm::VmConfig config;
  config.name = "figures";
  config.cpus = kCpus;
  config.memory_bytes = bytes;
  config.cmdline = "scenarios=io";
  auto vm = vmm::Vm::create(config);
  if (!vm)
    return fail(vm.error());
  const auto slots = (*vm)->memory().slots();
  constexpr uint64_t kFree = 32 * kMib; // the guest leaves it alone
  for (const vmm::MemorySlot& slot : slots)
    for (uint64_t at = slot.base.value == 0 ? kFree : 0; at < slot.size_bytes; at += sizeof(uint64_t) * 64) {
      const uint64_t word = at * 0x9e3779b97f4a7c15 + 1;
      std::memcpy(slot.host + at, &word, sizeof word);
    }
  if (auto started = (*vm)->start(); !started)
    return fail(started.error());
  if (!tools::ProbeView((*vm)->memory()).await_running(kCpus, 60, [] { return true; }))
    return false;
  std::expected<Created, vmm::Error> made = std::unexpected(vmm::Error{"snapshot", "", "no stop"});
  const auto stopped = (*vm)->stops().run([&](stopper::StopContext&) {
    auto contents = contents_of("snapshot", **vm);
    if (!contents)
      made = std::unexpected(contents.error());
    else
      made = create(directory, *contents, *memory_of("snapshot", **vm), {.operation = "snapshot"});
    return 0;
  });
  if (!stopped)
    return fail((*vm)->explain("snapshot", stopped.error()));
  return made || fail(made.error());
}

struct Times {
  double begin_ms = 0;
  double entry_ms = 0;
  double run_ms = 0;
};

double ms_since(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double, std::milli>(end - begin).count();
}

std::optional<Times> restore(const RestoreOptions& options) {
  FirstEntry hooks; // outlives the VM
  const auto begin = Clock::now();
  auto opened = Restoration::open(options);
  if (!opened)
    return fail(opened.error()), std::nullopt;
  opened->read_on();
  auto vm = vmm::Vm::begin(opened->config());
  if (!vm)
    return fail(vm.error()), std::nullopt;
  const auto begun = Clock::now();
  (*vm)->use_hooks(&hooks);
  auto done = opened->into(**vm, [](const vmm::Error& error) { std::_Exit(fail(error) ? 0 : 1); });
  if (done)
    done = (*vm)->start();
  if (!done)
    return fail(done.error()), std::nullopt;
  return Times{ms_since(begin, begun), ms_since(begin, hooks.entered()), ms_since(begin, hooks.left())};
}

double middle(std::vector<Times> all, double Times::* what) {
  const auto at = all.begin() + static_cast<std::ptrdiff_t>(all.size() / 2);
  std::ranges::nth_element(all, at, {}, what);
  return (*at).*what;
}

bool measure(const char* name, const RestoreOptions& options, int rounds) {
  std::vector<Times> all;
  for (int round = 0; round < rounds; ++round) {
    const auto times = restore(options);
    if (!times)
      return false;
    all.push_back(*times);
  }
  std::printf("  %-14s %18.2f %22.2f %22.2f\n", name, middle(all, &Times::begin_ms), middle(all, &Times::entry_ms),
              middle(all, &Times::run_ms));
  return true;
}

bool measure_size(const std::string& folder, uint64_t mib, int rounds) {
  const std::string directory = folder + "/restore-figures-" + std::to_string(mib);
  if (!make_snapshot(directory, mib * kMib))
    return false;
  std::printf("%llu MiB\n", static_cast<unsigned long long>(mib));
  const bool good = measure("on touch", {.directory = directory, .verify = Verify::kTouch}, rounds) &&
                    measure("at the start", {.directory = directory}, std::max(rounds / 10, 3)) &&
                    measure("shared", {.directory = directory, .share = true}, std::max(rounds / 10, 3));
  std::error_code ignored;
  std::filesystem::remove_all(directory, ignored);
  return good;
}

} // namespace
} // namespace stopvisor::snapshot

int main(int argc, char** argv) {
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 30; // NOLINT(cert-err34-c): 0 is refused
  if (argc < 2 || rounds < 1)
    return 2;
  (void)std::setvbuf(stdout, nullptr, _IOLBF, 0); // to see it come
  std::printf("medians, ms from the begin of the restore until\n"
              "  memory checked  the machine is begun  a vCPU enters KVM_RUN   it comes out, for a device\n");
  std::vector<uint64_t> sizes;
  for (int word = 3; word < argc; ++word)
    sizes.push_back(std::strtoull(argv[word], nullptr, 10));
  if (sizes.empty())
    sizes = {256, 1024, 2048, 4096};
  for (const uint64_t mib : sizes)
    if (!stopvisor::snapshot::measure_size(argv[1], mib, rounds))
      return 1;
  return 0;
}
