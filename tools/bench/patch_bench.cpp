// SPDX-License-Identifier: Apache-2.0
#include "tools/bench/patch_bench.h"

#include <chrono>
#include <string>
#include <vector>

#include "guest/probe_abi.h"
#include "tools/bench/running_vm.h"
#include "tools/patch/engine.h"
#include "tools/patch/vm_guest.h"
#include "vmm/control/guest_access.h"
#include "vmm/urgent_thread.h"

namespace stopvisor::tools {
namespace {

using patch::SiteKind;
using vmm::Error;

constexpr uint32_t kSites = probe::kCodeSites;
constexpr uint64_t kDataGpa = 0x80'0000; // memory the probe guest does not touch

patch::Write write_of(uint64_t address, SiteKind kind) {
  patch::Write write;
  write.at = {patch::Place::Kind::kVcpu, address, 0, {}};
  write.kind = kind;
  write.expect.resize(8);
  write.operation.bytes.assign(8, std::byte{1});
  return write;
}

// Operands of 16 instructions, over the ends of pages and of cache lines.
patch::Manifest code_patch() {
  patch::Manifest manifest;
  manifest.name = "code";
  manifest.version = "1";
  for (uint32_t site = 0; site < kSites; ++site) {
    patch::Write write = write_of(probe::code_site_gpa(site) + probe::kCodeImmediateOffset, SiteKind::kCode);
    write.function = patch::FunctionExtent{write.at, probe::kCodeSiteBytes};
    write.function->at.value -= probe::kCodeImmediateOffset;
    manifest.writes.push_back(std::move(write));
  }
  return manifest;
}

patch::Manifest data_patch() {
  patch::Manifest manifest;
  manifest.name = "data";
  manifest.version = "1";
  for (uint32_t site = 0; site < kSites; ++site)
    manifest.writes.push_back(write_of(kDataGpa + uint64_t{site} * 0x1000 + 0xffc, SiteKind::kData));
  return manifest;
}

struct Series {
  std::vector<int64_t> empty, apply, revert, apply_work, revert_work, data_work;
};

class Bench {
public:
  explicit Bench(RunningVm& running, uint32_t cpus)
      : running_(running), cpus_(cpus), knowledge_(*running.vm), guest_(*running.vm, knowledge_),
        engine_(guest_, clock_) {}

  std::expected<Series, Error> measure(uint32_t rounds) {
    for (uint32_t round = 0; round < rounds; ++round) {
      if (auto held = hold_empty(); !held)
        return std::unexpected(held.error());
      if (auto one = take_back(code_, &series_.apply, series_.apply_work, &series_.revert, series_.revert_work);
          !one)
        return std::unexpected(one.error());
      std::vector<int64_t> not_kept;
      if (auto one = take_back(data_, nullptr, series_.data_work, nullptr, not_kept); !one)
        return std::unexpected(one.error());
    }
    return std::move(series_);
  }

private:
  using Done = std::expected<void, Error>;

  Done hold_empty() {
    let_run(cpus_);
    const auto deadline = std::chrono::steady_clock::now() + kTimeout;
    auto held = vmm::under_stop(*running_.vm, "bench", deadline, []() -> Done { return {}; });
    if (held)
      series_.empty.push_back(running_.vm->stops().last_report().hold_ns());
    return held;
  }

  Done take_back(const patch::Manifest& manifest, std::vector<int64_t>* apply, std::vector<int64_t>& apply_work,
                 std::vector<int64_t>* revert, std::vector<int64_t>& revert_work) {
    patch::Options options;
    options.deadline = std::chrono::steady_clock::now() + kTimeout;
    options.retries = 1000;
    let_run(cpus_);
    if (auto kept = keep(engine_.apply(manifest, options), apply, apply_work); !kept)
      return kept;
    let_run(cpus_);
    return keep(engine_.revert(manifest.name, options), revert, revert_work);
  }

  static Done keep(const patch::Result& result, std::vector<int64_t>* hold, std::vector<int64_t>& work) {
    if (!result)
      return std::unexpected(result.error().error);
    if (const auto& stop = result->cost.stop; hold != nullptr && stop)
      hold->push_back(stop->hold_ns);
    work.push_back(result->cost.work_ns);
    return {};
  }

  RunningVm& running_;
  uint32_t cpus_;
  vmm::GuestKnowledge knowledge_;
  patch::VmGuest guest_;
  patch::Clock clock_;
  patch::Engine engine_;
  patch::Manifest code_ = code_patch();
  patch::Manifest data_ = data_patch();
  Series series_;
};

} // namespace

std::expected<PatchFigures, Error> bench_patch(uint32_t cpus, uint32_t rounds) {
  vmm::make_this_thread_urgent(); // as the threads of the control socket are
  auto running = RunningVm::start(cpus);
  if (!running)
    return std::unexpected(running.error());
  auto series = Bench(**running, cpus).measure(rounds);
  if (!series)
    return std::unexpected(series.error());
  return PatchFigures{cpus,
                      percentiles(std::move(series->empty)),
                      percentiles(std::move(series->apply)),
                      percentiles(std::move(series->revert)),
                      percentiles(std::move(series->apply_work)),
                      percentiles(std::move(series->revert_work)),
                      percentiles(std::move(series->data_work))};
}

} // namespace stopvisor::tools
