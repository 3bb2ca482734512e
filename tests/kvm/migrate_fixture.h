// SPDX-License-Identifier: Apache-2.0
// What tests of migrating machines share: both sides in one process, as the command has them in two.
//
// So the destination can look at the source's machine in the moment in which it gets the right to run: the source
// is held until it has heard that word, and nobody can change either of them.
#pragma once

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "tests/kvm/arrival.h"
#include "tests/kvm/state_fixture.h"
#include "tests/sanitized.h"
#include "tools/migrate/source.h"

namespace stopvisor::vmm::testing {

// How many migrations, as tests/kvm/state_test.cpp has it.
inline uint32_t migrations(uint32_t quick, uint32_t full, uint32_t thorough) {
  if (kAddressSanitizer)
    full = quick;
  const char* const mode = std::getenv("STOPVISOR_TEST_MODE"); // NOLINT(concurrency-mt-unsafe): nobody sets it
  const std::string_view word = mode == nullptr ? "quick" : mode;
  return word == "long" ? thorough : word == "full" ? full : quick;
}

class MigrateTest : public StateTest {
protected:
  MigrateTest() {
    std::string folder = (std::filesystem::temp_directory_path() / "stopvisor-migrate-XXXXXX").string();
    if (::mkdtemp(folder.data()) != nullptr)
      folder_ = folder;
  }
  ~MigrateTest() override {
    std::error_code ignored;
    if (!folder_.empty())
      std::filesystem::remove_all(folder_, ignored);
  }

  // A migration under way, which others disturb.
  struct Journey {
    migrate::Source* source = nullptr;
    Arrival* arrival = nullptr;
    std::stop_source stop;
    Progress progress;
  };
  struct Outcome {
    std::expected<migrate::SourceFigures, Error> source;
    std::expected<void, Error> destination;
  };

  static migrate::SourceOptions over(uint16_t streams, bool compress = false) {
    migrate::SourceOptions options;
    options.streams = streams;
    options.compress = compress;
    return options;
  }
  static Guest at_home(std::unique_ptr<Vm> vm) {
    Guest guest{std::move(vm), nullptr};
    if (guest.vm != nullptr)
      guest.api = std::make_unique<Api>(*guest.vm);
    return guest;
  }
  // A probe in which everybody has begun to work.
  static Guest busy(VmConfig config) {
    const uint32_t cpus = config.cpus;
    Guest guest = at_home(started(std::move(config)));
    if (guest.vm != nullptr && !await(*guest.vm, [&] { return cpus_running(*guest.vm) == cpus; }))
      return {};
    return guest;
  }
  // From now on everybody works: some slices more of each vCPU that is to work, and no complaint.
  static void goes_on(const Vm& vm) {
    for (uint32_t cpu = 0; cpu < vm.cpu_count(); ++cpu) {
      if (vm.vcpu_status(cpu).presence != VcpuPresence::kOnline)
        continue;
      const uint64_t before = results(vm, cpu).slices;
      ASSERT_TRUE(await(vm, [&] { return results(vm, cpu).slices >= before + 3; })) << cpu;
    }
    expect_no_complaint(vm);
  }
  static void expect_no_complaint(const Vm& vm) {
    for (uint32_t cpu = 0; cpu < vm.cpu_count(); ++cpu) {
      const probe::CpuResults seen = results(vm, cpu);
      const DoorbellCounts device = vm.doorbell_counts(cpu);
      EXPECT_EQ(seen.ledger_torn + seen.code_torn + seen.io_bad + seen.mail_bad, 0U) << "vCPU " << cpu;
      EXPECT_EQ(device.lost + device.doubled, 0U) << "vCPU " << cpu;
    }
  }
  // CONTEXT: nobody changes either.
  static void expect_same_memory(const Vm& one, const Vm& other) {
    const auto theirs = other.memory().slots();
    ASSERT_EQ(one.memory().slots().size(), theirs.size());
    size_t slot = 0;
    for (const MemorySlot& mine : one.memory().slots()) {
      ASSERT_EQ(mine.size_bytes, theirs[slot].size_bytes);
      for (uint64_t at = 0; at < mine.size_bytes; at += kPageBytes)
        ASSERT_EQ(std::memcmp(mine.host + at, theirs[slot].host + at, kPageBytes), 0)
            << "page " << std::hex << mine.base.value + at;
      ++slot;
    }
  }
  // The machine as it is now. CONTEXT: it is held.
  static Sections state_of(Vm& vm) {
    Sections sections;
    const auto stop = vm.stops().run([&](stopper::StopContext&) {
      if (auto saved = vm.save_state())
        sections = *std::move(saved);
      return 0;
    });
    EXPECT_TRUE(stop.has_value());
    return sections;
  }

  // Moves the guest, which is compared in the moment it goes. `disturb` is called on a thread of its own, from
  // before the first call on, and must have returned by the time the source has ended or soon after.
  Outcome move(Guest& guest, migrate::SourceOptions options = {},
               const std::function<void(Journey&)>& disturb = {}) {
    Sections sent;
    Vm& from = *guest.vm;
    const std::string uri = "unix:" + folder_ + "/door" + std::to_string(++doors_);
    Arrival arrival(uri, [&](Vm& to) {
      expect_same_memory(from, to);
      EXPECT_EQ(differences(without_clocks(sent), without_clocks(state_of(to))), "") << "as it arrived";
      EXPECT_EQ(to.doorbell_counts(), from.doorbell_counts());
    });
    options.to = migrate::parse_address("migrate", uri, migrate::Side::kSource).value();
    Journey journey{.source = nullptr, .arrival = &arrival, .stop = {}, .progress = {}};
    migrate::Source source(from, std::move(options),
                           {.holds = guest.holds(),
                            .progress = &journey.progress,
                            .stop = journey.stop.get_token(),
                            .begin_phase = [&](const char* phase) { at_phase_(phase); },
                            .tell = [](const std::string&) {},
                            .add_state =
                                [&](Sections& sections) {
                                  sent = sections;
                                  at_state_(journey);
                                }});
    journey.source = &source;
    std::optional<std::jthread> disturbing;
    if (disturb)
      disturbing.emplace([&] { disturb(journey); });
    Outcome outcome{source.run(), {}};
    disturbing.reset();
    if (!outcome.source && arrival.destination().view().phase == migrate::DestinationPhase::kWaiting)
      arrival.cancel(); // nobody has called
    outcome.destination = arrival.wait();
    arrived_held_ = arrival.was_held();
    if (outcome.destination)
      guest = arrival.take();
    return outcome;
  }
  // The same, where nothing is to come between.
  void expect_to_move(Guest& guest, const migrate::SourceOptions& options = {}) {
    const Vm* const before = guest.vm.get();
    const Outcome outcome = move(guest, options);
    ASSERT_TRUE(outcome.source.has_value()) << outcome.source.error().message();
    ASSERT_TRUE(outcome.destination.has_value()) << outcome.destination.error().message();
    ASSERT_NE(guest.vm.get(), before);
    figures_ = *outcome.source;
    ASSERT_FALSE(arrived_held_);
    goes_on(*guest.vm);
  }

  static Guest small(uint32_t cpus) {
    VmConfig config = probe(cpus, "scenarios=ledger,code,dirty,io dirty_mib=8");
    config.memory_bytes = 40ULL << 20;
    return busy(config);
  }
  static bool is_over(const Journey& journey) {
    const migrate::SourcePhase phase = journey.source->view().phase;
    return phase == migrate::SourcePhase::kGone || phase == migrate::SourcePhase::kHere;
  }
  // Some moment of the migration: its begin, before all was copied once, or in its switch.
  void await_some_moment(Journey& journey) {
    if (random_() % 8 == 0)
      return;
    const uint64_t share = random_() % 130; // of the memory, in hundredths
    const uint64_t turns = random_() % 4 == 0 ? random_() % 100 : 0;
    const auto copied = [&] {
      const uint64_t total = journey.progress.total_bytes.load();
      return total != 0 && journey.progress.done_bytes.load() * 100 >= total * share;
    };
    const auto switches = [&] { return journey.source->view().phase == migrate::SourcePhase::kSwitching; };
    while (!is_over(journey) && !(share < 100 ? copied() : switches()))
      std::this_thread::yield();
    for (uint64_t turn = 0; turn < turns && !is_over(journey); ++turn)
      std::this_thread::yield();
  }
  // The guest runs on one side, the one that says so, and goes on there.
  void expect_one_side(const Outcome& outcome, Guest& guest, const Vm* before) {
    ASSERT_EQ(outcome.source.has_value(), outcome.destination.has_value())
        << (outcome.source ? outcome.destination.error().message() : outcome.source.error().message());
    ASSERT_EQ(outcome.source.has_value(), guest.vm.get() != before);
    if (arrived_held_ && outcome.source) {
      ASSERT_TRUE(guest.holds().resume().has_value());
    }
    ASSERT_NO_FATAL_FAILURE(goes_on(*guest.vm));
    moved_ += outcome.source.has_value() ? 1U : 0U;
  }

  std::function<void(std::string_view)> at_phase_ = [](std::string_view) {};
  std::function<void(Journey&)> at_state_ = [](Journey&) {}; // under the switch's stop, before the state is sent

  std::mt19937 random_{20261130}; // NOLINT(bugprone-random-generator-seed): the same in each run
  uint32_t moved_ = 0;
  std::string folder_;
  unsigned doors_ = 0;
  bool arrived_held_ = false;      // the last one
  migrate::SourceFigures figures_; // of the last one
};

} // namespace stopvisor::vmm::testing
