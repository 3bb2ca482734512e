// SPDX-License-Identifier: Apache-2.0
// A live snapshot of a guest that goes on writing has its memory as it was at the instant of its hold.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string_view>

#include "tests/kvm/state_fixture.h"
#include "tests/sanitized.h"
#include "tools/snapshot/live_snapshot.h"
#include "tools/snapshot/vm_capture.h"
#include "tools/snapshot/vm_restore.h"

namespace stopvisor::vmm::testing {
namespace {

using snapshot::Chain;
using snapshot::LiveCreated;
using snapshot::LiveOptions;

// How many snapshots, as tests/kvm/state_test.cpp has it.
uint32_t snapshots(uint32_t quick, uint32_t full, uint32_t thorough) {
  if (kAddressSanitizer)
    full = quick;
  const char* const mode = std::getenv("STOPVISOR_TEST_MODE"); // NOLINT(concurrency-mt-unsafe): nobody sets it
  const std::string_view word = mode == nullptr ? "quick" : mode;
  return word == "long" ? thorough : word == "full" ? full : quick;
}

class Live : public StateTest {
protected:
  Live() {
    std::string folder = (std::filesystem::temp_directory_path() / "stopvisor-live-XXXXXX").string();
    if (::mkdtemp(folder.data()) != nullptr)
      folder_ = folder;
  }
  ~Live() override {
    std::error_code ignored;
    if (!folder_.empty())
      std::filesystem::remove_all(folder_, ignored);
  }
  void SetUp() override {
    StateTest::SetUp();
    if (const auto allowed = Userfault::open("test"); !allowed && !IsSkipped())
      GTEST_SKIP() << allowed.error().message();
  }

  [[nodiscard]] std::string place() const { return folder_ + "/snapshot"; }
  // A probe guest in which everybody has begun to work.
  std::unique_ptr<Vm> busy(uint32_t cpus, MemoryBacking backing = MemoryBacking::kAnonymous) {
    VmConfig config = probe(cpus, "scenarios=dirty,ledger,code,io dirty_mib=16");
    config.memory_bytes = 48ULL << 20;
    config.backing = backing;
    auto vm = started(config);
    if (vm == nullptr || !await(*vm, [&] { return cpus_running(*vm) == cpus; }))
      return nullptr;
    goes_on(*vm);
    return vm;
  }
  static void goes_on(const Vm& vm) {
    for (uint32_t cpu = 0; cpu < vm.cpu_count(); ++cpu) {
      const uint64_t before = results(vm, cpu).slices;
      ASSERT_TRUE(await(vm, [&] { return results(vm, cpu).slices >= before + 4; })) << cpu;
      EXPECT_EQ(results(vm, cpu).ledger_torn + results(vm, cpu).code_torn + results(vm, cpu).io_bad, 0U);
    }
  }
  static std::span<std::byte> bytes(const Vm& vm) {
    return {vm.memory().slots().front().host, vm.memory().size_bytes()};
  }

  // Notes the memory at the instant.
  std::expected<LiveCreated, Error> create(Vm& vm, LiveOptions options = {}) {
    options.at_instant = [&] { instant_.assign(bytes(vm).begin(), bytes(vm).end()); };
    return snapshot::create_live(vm, place(), options);
  }
  // Calls `act` in the middle: when the extent at `offset` has been read, and those that follow have not.
  static LiveOptions in_the_middle(std::function<void()> act, uint64_t offset = 8 << 20) {
    LiveOptions options;
    options.create.threads = 1;
    options.freeze.at = [act = std::move(act), offset](FreezePoint point, uint64_t at) {
      if (point == FreezePoint::kFinished && at == offset)
        act();
    };
    return options;
  }
  void expect_the_instant() const {
    const auto chain = Chain::open(place(), {});
    ASSERT_TRUE(chain.has_value()) << chain.error().message();
    std::vector<std::byte> memory(instant_.size());
    const std::vector<std::span<std::byte>> places{memory};
    const auto read = chain->read_memory(places, {});
    ASSERT_TRUE(read.has_value()) << read.error().message();
    for (size_t page = 0; page < memory.size() / kPageBytes; ++page)
      ASSERT_EQ(std::memcmp(memory.data() + page * kPageBytes, instant_.data() + page * kPageBytes, kPageBytes), 0)
          << "page " << page;
  }
  [[nodiscard]] bool nothing_is_left() const { return std::filesystem::is_empty(folder_); }
  static void expect_error(const std::expected<LiveCreated, Error>& made, const std::string& reason) {
    ASSERT_FALSE(made.has_value());
    EXPECT_EQ(made.error().reason, reason);
  }

  // Snapshots of a guest in which everybody works; it goes on from every fourth.
  void rounds(uint32_t cpus, uint32_t count, MemoryBacking backing = MemoryBacking::kAnonymous) {
    auto vm = busy(cpus, backing);
    ASSERT_NE(vm, nullptr);
    for (uint32_t round = 0; round < count; ++round) {
      const auto made = create(*vm);
      ASSERT_TRUE(made.has_value()) << made.error().message();
      ASSERT_NO_FATAL_FAILURE(expect_the_instant());
      if (round % 4 == 3) {
        ASSERT_NO_FATAL_FAILURE(go_on_from_it(vm));
      }
      std::filesystem::remove_all(place());
      ASSERT_NO_FATAL_FAILURE(goes_on(*vm));
    }
  }
  void go_on_from_it(std::unique_ptr<Vm>& vm) {
    auto restoration = snapshot::Restoration::open({.directory = place(), .key = {}});
    ASSERT_TRUE(restoration.has_value()) << restoration.error().message();
    auto next = make(restoration->config());
    ASSERT_NE(next, nullptr);
    const auto restored = restoration->into(*next);
    ASSERT_TRUE(restored.has_value()) << restored.error().message();
    ASSERT_TRUE(next->start().has_value());
    vm = std::move(next);
  }

  std::string folder_;
  std::vector<std::byte> instant_;
};

TEST_F(Live, SnapshotOfABusyGuestIsOfOneInstantWith1Vcpu) {
  rounds(1, snapshots(4, 8, 400));
}
TEST_F(Live, SnapshotOfABusyGuestIsOfOneInstantWith2Vcpus) {
  rounds(2, snapshots(4, 8, 400));
}
TEST_F(Live, SnapshotOfABusyGuestIsOfOneInstantWith4Vcpus) {
  rounds(4, snapshots(4, 8, 200));
}
TEST_F(Live, SnapshotOfAGuestInAMemfdIsOfOneInstant) {
  rounds(2, snapshots(2, 4, 100), MemoryBacking::kMemfd);
}

TEST_F(Live, SnapshotOfAGuestInHugePagesIsOfOneInstant) {
  if (const auto pool = GuestMemory::create(48ULL << 20, MemoryBacking::kHugetlb); !pool)
    GTEST_SKIP() << pool.error().message();
  rounds(2, 3, MemoryBacking::kHugetlb); // and goes on from none: the pool may be no larger
}

// The host writes, as a guest is not quick to: on both sides of the hole, before and after the instant.
TEST_F(Live, SnapshotOfMemoryOnBothSidesOfTheHoleIsOfOneInstant) {
  VmConfig config = probe(1, "scenarios=idle");
  config.memory_bytes = kHoleStart + (8 << 20);
  const auto vm = started(config);
  ASSERT_NE(vm, nullptr);
  const std::array<uint64_t, 4> places{64ULL << 20, kHoleStart - kPageBytes, kHoleEnd,
                                       kHoleEnd + (8 << 20) - kPageBytes};
  const auto write = [&](uint64_t value) {
    for (const uint64_t gpa : places)
      poke(*vm, gpa + 8, value);
  };
  write(1);
  LiveOptions options = in_the_middle([&] { write(2); });
  const auto made = snapshot::create_live(*vm, place(), options);
  ASSERT_TRUE(made.has_value()) << made.error().message();
  const auto next = [&] {
    auto chain = Chain::open(place(), {});
    EXPECT_TRUE(chain.has_value());
    return chain;
  }();
  std::vector<std::byte> extent(snapshot::kExtentBytes);
  for (const uint64_t gpa : places) {
    const uint64_t offset = gpa < kHoleEnd ? gpa : gpa - kHoleEnd + kHoleStart; // no gap in the file between them
    ASSERT_TRUE(next->read_extent(offset / snapshot::kExtentBytes, extent).has_value());
    uint64_t value = 0;
    std::memcpy(&value, extent.data() + offset % snapshot::kExtentBytes + 8, sizeof(value));
    EXPECT_EQ(value, 1U) << std::hex << gpa;
    EXPECT_EQ(peek<uint64_t>(*vm, gpa + 8), 2U) << std::hex << gpa;
  }
}

TEST_F(Live, SnapshotDoesNotHaveWhatIsPokedWhileItIsWritten) {
  const auto vm = busy(2);
  ASSERT_NE(vm, nullptr);
  const uint64_t gpa = probe::kDirtyGpa - (8 << 20) + 16; // read after the middle, and no scenario writes there
  poke<uint64_t>(*vm, gpa, 1);
  const auto made = create(*vm, in_the_middle([&] {
    const auto stop = vm->stops().run([&](stopper::StopContext&) {
      poke<uint64_t>(*vm, gpa, 2);
      return 0;
    });
    EXPECT_TRUE(stop.has_value());
  }));
  ASSERT_TRUE(made.has_value()) << made.error().message();
  EXPECT_EQ(peek<uint64_t>(*vm, gpa), 2U);
  expect_the_instant();
}

TEST_F(Live, SnapshotIsOneAtATimeAndAStoppedOneMayComeBetween) {
  const auto vm = busy(2);
  ASSERT_NE(vm, nullptr);
  std::vector<std::byte> then;
  const auto made = create(*vm, in_the_middle([&] {
    const auto second = snapshot::create_live(*vm, folder_ + "/second", {});
    ASSERT_FALSE(second.has_value());
    EXPECT_EQ(second.error().reason, "another live snapshot is being written");
    EXPECT_EQ(second.error().status, Status::kBusy);
    const auto stop = vm->stops().run([&](stopper::StopContext&) {
      const auto contents = snapshot::contents_of("test", *vm);
      EXPECT_TRUE(contents.has_value());
      const auto stopped = snapshot::create(folder_ + "/stopped", *contents, *snapshot::memory_of("test", *vm), {});
      EXPECT_TRUE(stopped.has_value());
      then.assign(bytes(*vm).begin(), bytes(*vm).end());
      return 0;
    });
    EXPECT_TRUE(stop.has_value());
  }));
  ASSERT_TRUE(made.has_value()) << made.error().message();
  expect_the_instant();
  const auto chain = Chain::open(folder_ + "/stopped", {});
  ASSERT_TRUE(chain.has_value());
  std::vector<std::byte> memory(then.size());
  const std::vector<std::span<std::byte>> places{memory};
  ASSERT_TRUE(chain->read_memory(places, {}).has_value());
  EXPECT_TRUE(memory == then);
  goes_on(*vm);
}

TEST_F(Live, SnapshotOfAGuestThatOutrunsItMakesItWait) {
  const auto vm = busy(2);
  ASSERT_NE(vm, nullptr);
  std::atomic<bool> throttled{false};
  LiveOptions options;
  options.create.threads = 1;
  options.freeze.side_limit_bytes = 128 << 10;
  options.freeze.at = [&](FreezePoint point, uint64_t offset) {
    if (point == FreezePoint::kThrottled)
      throttled = true;
    if (point == FreezePoint::kCopied && offset == 0) { // the guest rewrites 16 MiB meanwhile
      EXPECT_TRUE(await(*vm, [&] { return throttled.load(); }));
    }
  };
  const auto made = create(*vm, options);
  ASSERT_TRUE(made.has_value()) << made.error().message();
  EXPECT_GT(made->figures.throttled, 0U);
  EXPECT_LE(made->figures.side_peak_bytes, 128U << 10);
  expect_the_instant();
  goes_on(*vm);
}

TEST_F(Live, SnapshotThatIsCancelledLeavesNothingAndTheGuestGoesOn) {
  const auto vm = busy(2);
  ASSERT_NE(vm, nullptr);
  for (const bool early : {true, false}) {
    std::stop_source stop;
    LiveOptions options = in_the_middle([&] { stop.request_stop(); });
    if (early)
      options.freeze.at = [&](FreezePoint, uint64_t) { stop.request_stop(); };
    options.create.stop = stop.get_token();
    expect_error(create(*vm, options), "was cancelled");
    EXPECT_TRUE(nothing_is_left());
    goes_on(*vm);
  }
  ASSERT_TRUE(create(*vm).has_value());
  expect_the_instant();
}

TEST_F(Live, SnapshotOfAVmThatEndsIsNone) {
  const auto vm = busy(2);
  ASSERT_NE(vm, nullptr);
  expect_error(create(*vm, in_the_middle([&] { vm->request_end({EndKind::kRequested, ""}); })),
               "the VM ended meanwhile");
  EXPECT_TRUE(nothing_is_left());
  (void)vm->wait_for_end();
}

// Whether it comes while memory is protected or while it is written: what was there is gone.
TEST_F(Live, SnapshotOfAGuestThatResetsItselfIsNone) {
  for (const FreezePoint when : {FreezePoint::kArmed, FreezePoint::kFinished})
    for (const MemoryBacking backing : {MemoryBacking::kAnonymous, MemoryBacking::kMemfd}) {
      const auto vm = busy(2, backing);
      ASSERT_NE(vm, nullptr);
      LiveOptions options;
      options.create.threads = 1;
      options.freeze.at = [&](FreezePoint point, uint64_t offset) {
        if (point != when || offset != 8 << 20)
          return;
        // Code site 1 becomes: mov $0xfe, %al; out %al, $0x64; ret.
        const std::array<uint8_t, 5> pulse{0xb0, 0xfe, 0xe6, 0x64, 0xc3};
        const auto stop = vm->stops().run([&](stopper::StopContext&) {
          poke(*vm, probe::code_site_gpa(1), pulse);
          return 0;
        });
        EXPECT_TRUE(stop.has_value());
        EXPECT_TRUE(await(*vm, [&] { return vm->resets() != 0; }));
      };
      expect_error(create(*vm, options), "the guest reset itself meanwhile");
      EXPECT_TRUE(nothing_is_left());
      ASSERT_TRUE(await(*vm, [&] { return cpus_running(*vm) == 2; }));
      goes_on(*vm);
    }
}

TEST_F(Live, SnapshotOfAGuestThatIsPausedLeavesItPaused) {
  const auto vm = busy(2);
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(vm->stops().acquire_hold().has_value());
  const auto made = create(*vm);
  ASSERT_TRUE(made.has_value()) << made.error().message();
  EXPECT_EQ(vm->state(), VmState::kHeld);
  EXPECT_EQ(made->figures.preserved_bytes, 0U);
  expect_the_instant();
  (void)vm->stops().release_hold();
  goes_on(*vm);
}

} // namespace
} // namespace stopvisor::vmm::testing
