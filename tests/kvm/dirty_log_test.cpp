// SPDX-License-Identifier: Apache-2.0
// Whoever copies a running guest's memory once, and then what the dirty log says was written, has all of it.
//
// The guests are copied into a shadow, page by page as the log tells. Under a stop both must be the same, to the
// last byte: a write that nobody noticed is a difference.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string_view>

#include "tests/kvm/entropy_guest.h"
#include "tests/kvm/state_fixture.h"
#include "tests/sanitized.h"
#include "vmm/control/api.h"
#include "vmm/dirty_log.h"

namespace stopvisor::vmm::testing {
namespace {

// How many rounds, as tests/kvm/state_test.cpp has it.
uint32_t rounds(uint32_t quick, uint32_t full, uint32_t thorough) {
  if (kAddressSanitizer)
    full = quick;
  const char* const mode = std::getenv("STOPVISOR_TEST_MODE"); // NOLINT(concurrency-mt-unsafe): nobody sets it
  const std::string_view word = mode == nullptr ? "quick" : mode;
  return word == "long" ? thorough : word == "full" ? full : quick;
}

// A copy of a guest's memory that follows it.
class Shadow {
public:
  explicit Shadow(Vm& vm)
      : vm_(vm), memory_(*GuestMemory::create(vm.memory().size_bytes(), MemoryBacking::kAnonymous)),
        last_(vm.memory().slots()) {
    auto log = vm.log_dirty_pages("follow");
    EXPECT_TRUE(log.has_value()) << log.error().message();
    log_ = std::move(*log);
    DirtyPages all(vm.memory().slots());
    all.add_all();
    copy(all);
  }

  // What was written since the last look, while the guest goes on. RETURNS: how many pages.
  uint64_t follow() {
    DirtyPages written(vm_.memory().slots());
    const auto taken = log_->take(written);
    EXPECT_TRUE(taken.has_value()) << taken.error().message();
    copy(written);
    return written.count();
  }
  // The last look. CONTEXT: under a stop.
  void catch_up() {
    last_.clear();
    const auto read = log_->read(last_);
    EXPECT_TRUE(read.has_value()) << read.error().message();
    copy(last_);
  }
  // Where it is not the guest's memory; empty where it is. CONTEXT: under a stop.
  [[nodiscard]] std::string difference() const {
    for (const MemorySlot& slot : vm_.memory().slots())
      for (uint64_t at = 0; at < slot.size_bytes; at += kPageBytes) {
        const std::byte* const theirs = slot.host + at;
        const std::byte* const ours = memory_.range(Gpa{slot.base.value + at}, kPageBytes).data();
        if (std::memcmp(theirs, ours, kPageBytes) != 0)
          return "page " + std::to_string((slot.base.value + at) / kPageBytes);
      }
    return {};
  }
  // Whether catch_up() was told of one of these pages.
  [[nodiscard]] bool was_told_of(Gpa gpa, uint64_t length = 1) const {
    DirtyPages some(vm_.memory().slots());
    some.add(gpa, length);
    for (size_t slot = 0; slot < some.slots().size(); ++slot)
      for (size_t word = 0; word < some.slots()[slot].words.size(); ++word)
        if ((some.slots()[slot].words[word] & last_.slots()[slot].words[word]) != 0)
          return true;
    return false;
  }

private:
  // Pages of zeros are not touched where they are zeros anyway.
  void copy(const DirtyPages& pages) {
    static constexpr std::byte kZeros[kPageBytes]{};
    for (const DirtyPages::Slot& slot : pages.slots())
      for (uint64_t page = 0; page < slot.pages; ++page) {
        if ((slot.words[page / 64] >> (page % 64) & 1) == 0)
          continue;
        const std::byte* const from = slot.host + page * kPageBytes;
        std::byte* const to = memory_.range(Gpa{slot.base.value + page * kPageBytes}, kPageBytes).data();
        if (std::memcmp(from, kZeros, kPageBytes) != 0 || std::memcmp(to, kZeros, kPageBytes) != 0)
          std::memcpy(to, from, kPageBytes);
      }
  }

  Vm& vm_;
  GuestMemory memory_;
  DirtyPages last_;
  std::unique_ptr<DirtyLog> log_; // goes before the VM
};

class DirtyLogTest : public StateTest {
protected:
  // One stop, in which the shadow catches up and is compared.
  static void expect_the_same(Vm& vm, Shadow& shadow, const std::string& when) {
    std::string differs;
    const auto stop = vm.stops().run([&](stopper::StopContext&) {
      shadow.catch_up();
      differs = shadow.difference();
      return 0;
    });
    ASSERT_TRUE(stop.has_value()) << vm.explain("stop", stop.error()).message();
    ASSERT_EQ(differs, "") << when;
  }
  // As a client's patch does, under one stop: noted after it was written.
  static void patch(Vm& vm, uint8_t value) {
    const auto stop = vm.stops().run([&](stopper::StopContext&) {
      const auto write = [&](uint64_t gpa, uint64_t bytes) {
        poke(vm, gpa, bytes);
        vm.written_pages().note(Gpa{gpa}, sizeof bytes);
      };
      for (uint32_t word = 0; word < probe::kLedgerWords; ++word)
        write(probe::ledger_word_gpa(word), value);
      for (uint32_t site = 0; site < probe::kCodeSites; ++site)
        write(probe::code_site_gpa(site) + probe::kCodeImmediateOffset, value * 0x0101'0101'0101'0101);
      return 0;
    });
    ASSERT_TRUE(stop.has_value());
  }
  std::unique_ptr<Vm> busy(uint32_t cpus, const std::string& more = "dirty_mib=16", uint64_t mib = 48) {
    VmConfig config = probe(cpus, "scenarios=dirty,ledger,code,io,idle " + more);
    config.memory_bytes = mib << 20;
    auto vm = started(config);
    if (vm == nullptr || !await(*vm, [&] { return cpus_running(*vm) == cpus; }))
      return nullptr;
    goes_on(*vm);
    return vm;
  }
  static void goes_on(const Vm& vm) {
    for (uint32_t cpu = 0; cpu < vm.cpu_count(); ++cpu) {
      const uint64_t before = results(vm, cpu).slices;
      ASSERT_TRUE(await(vm, [&] { return results(vm, cpu).slices >= before + 2; })) << cpu;
    }
  }
  void follow_a_busy_guest(uint32_t cpus, uint32_t count) {
    const auto vm = busy(cpus);
    ASSERT_NE(vm, nullptr);
    Shadow shadow(*vm);
    uint64_t followed = 0;
    for (uint32_t round = 0; round < count; ++round) {
      ASSERT_NO_FATAL_FAILURE(patch(*vm, static_cast<uint8_t>(round % 255 + 1)));
      for (uint32_t look = 0; look < round % 4; ++look) {
        followed += shadow.follow();
        ASSERT_NO_FATAL_FAILURE(goes_on(*vm));
      }
      ASSERT_NO_FATAL_FAILURE(expect_the_same(*vm, shadow, "round " + std::to_string(round)));
    }
    EXPECT_GT(followed, count); // it was at work
    for (uint32_t cpu = 0; cpu < cpus; ++cpu)
      EXPECT_EQ(results(*vm, cpu).ledger_torn + results(*vm, cpu).code_torn + results(*vm, cpu).io_bad, 0U);
  }
};

TEST_F(DirtyLogTest, HasAllThatABusyGuestWritesWith1Vcpu) {
  follow_a_busy_guest(1, rounds(20, 200, 2000));
}
TEST_F(DirtyLogTest, HasAllThatABusyGuestWritesWith2Vcpus) {
  follow_a_busy_guest(2, rounds(20, 200, 2000));
}
TEST_F(DirtyLogTest, HasAllThatABusyGuestWritesWith4Vcpus) {
  follow_a_busy_guest(4, rounds(20, 200, 2000));
}

// The fourth vCPU's share of what is rewritten lies above the hole, the others' below.
TEST_F(DirtyLogTest, HasWhatIsWrittenAboveTheHole) {
  const auto vm = busy(4, "dirty_mib=4064 dirty_rate_mib=64", 4096);
  ASSERT_NE(vm, nullptr);
  ASSERT_EQ(vm->memory().slots().size(), 2U);
  Shadow shadow(*vm);
  for (uint32_t round = 0; round < 3; ++round) {
    const uint64_t before = results(*vm, 3).dirty_pages;
    ASSERT_TRUE(await(*vm, [&] { return results(*vm, 3).dirty_pages > before + 64; }));
    shadow.follow();
  }
  ASSERT_TRUE(
      await(*vm, [&, before = results(*vm, 3).dirty_pages] { return results(*vm, 3).dirty_pages > before; }));
  ASSERT_NO_FATAL_FAILURE(expect_the_same(*vm, shadow, "at the end"));
  EXPECT_TRUE(shadow.was_told_of(Gpa{kHoleEnd}, 1 << 30));
}

// What a device fills, on both sides of the hole, and the words of its ring.
TEST_F(DirtyLogTest, HasWhatADeviceWrites) {
  const RawKernel kernel(entropy_guest());
  for (const uint64_t buffers : {kBuffers, kHoleEnd + (1 << 20)}) {
    VmConfig config = raw(kernel.path());
    config.memory_bytes = buffers < kHoleStart ? 4 << 20 : kHoleStart + (4 << 20);
    const auto vm = make(config);
    ASSERT_NE(vm, nullptr);
    put_entropy_ring(vm->memory(), buffers);
    ASSERT_TRUE(vm->start().has_value());
    const auto answered = [&] { return peek<uint16_t>(*vm, kUsed + 2); };
    ASSERT_TRUE(await(*vm, [&] { return answered() > kSize; }));
    Shadow shadow(*vm);
    const uint32_t count = buffers < kHoleStart ? rounds(20, 300, 3000) : 3;
    for (uint32_t round = 0; round < count; ++round) {
      const uint16_t before = answered();
      ASSERT_TRUE(await(*vm, [&] { return uint16_t(answered() - before) > round % 3; }));
      if (round % 2 == 0)
        shadow.follow();
      ASSERT_NO_FATAL_FAILURE(expect_the_same(*vm, shadow, "round " + std::to_string(round)));
    }
  }
}

// Memory is cleared and loaded anew by the host, while somebody follows.
TEST_F(DirtyLogTest, HasEverythingAfterAReset) {
  for (const uint32_t cpus : {1U, 2U, 4U}) {
    const auto vm = busy(cpus);
    ASSERT_NE(vm, nullptr);
    Shadow shadow(*vm);
    for (uint64_t reset = 1; reset <= rounds(2, 5, 40); ++reset) {
      // Code site 1 becomes: mov $0xfe, %al; out %al, $0x64; ret.
      const std::array<uint8_t, 5> pulse{0xb0, 0xfe, 0xe6, 0x64, 0xc3};
      const auto stop = vm->stops().run([&](stopper::StopContext&) {
        poke(*vm, probe::code_site_gpa(1), pulse);
        vm->written_pages().note(Gpa{probe::code_site_gpa(1)}, pulse.size());
        return 0;
      });
      ASSERT_TRUE(stop.has_value());
      while (vm->resets() < reset)
        shadow.follow();
      ASSERT_NO_FATAL_FAILURE(expect_the_same(*vm, shadow, "just after a reset"));
      ASSERT_TRUE(await(*vm, [&] { return cpus_running(*vm) == cpus; }));
      ASSERT_NO_FATAL_FAILURE(goes_on(*vm));
      ASSERT_NO_FATAL_FAILURE(expect_the_same(*vm, shadow, "when it was up again"));
    }
  }
}

TEST_F(DirtyLogTest, TellsAgainWhatItWasOnlyAskedFor) {
  const auto vm = busy(1, "dirty_mib=16 timer_hz=0");
  ASSERT_NE(vm, nullptr);
  Shadow shadow(*vm);
  const Gpa place{24 << 20}; // which no scenario writes
  vm->written_pages().note_data(place, 1);
  ASSERT_NO_FATAL_FAILURE(expect_the_same(*vm, shadow, "once"));
  EXPECT_TRUE(shadow.was_told_of(place));
  ASSERT_NO_FATAL_FAILURE(expect_the_same(*vm, shadow, "twice"));
  EXPECT_TRUE(shadow.was_told_of(place)); // it had only been read
  shadow.follow();
  ASSERT_NO_FATAL_FAILURE(expect_the_same(*vm, shadow, "after it was taken"));
  EXPECT_FALSE(shadow.was_told_of(place));
}

TEST_F(DirtyLogTest, IsOneAtATime) {
  const auto vm = busy(1);
  ASSERT_NE(vm, nullptr);
  {
    const auto first = vm->log_dirty_pages("migrate");
    ASSERT_TRUE(first.has_value()) << first.error().message();
    const auto second = vm->log_dirty_pages("migrate");
    ASSERT_FALSE(second.has_value());
    EXPECT_EQ(second.error().message(),
              "migrate: dirty log: somebody follows the writes to this VM's memory already");
    EXPECT_EQ(second.error().status, Status::kBusy);
  }
  EXPECT_TRUE(vm->log_dirty_pages("migrate").has_value());
  Shadow shadow(*vm); // begins anew
  ASSERT_NO_FATAL_FAILURE(goes_on(*vm));
  ASSERT_NO_FATAL_FAILURE(expect_the_same(*vm, shadow, "with the third"));
}

// With a stop and without one.
TEST_F(DirtyLogTest, HasWhatIsPoked) {
  const auto vm = busy(1);
  ASSERT_NE(vm, nullptr);
  Api api(*vm);
  Shadow shadow(*vm);
  for (const char* const stop : {"true", "false"})
    for (int turn = 0; turn < 20; ++turn) {
      const std::string body = R"({"writes":[{"address":"gpa:0x1800fff","bytes":"0)" + std::to_string(turn % 10) +
                               R"(77"}],"stop":)" + stop + "}";
      const ApiReply reply = api.serve({.method = "POST",
                                        .path = "/v1/poke",
                                        .query = {},
                                        .body = body,
                                        .upgrade = {},
                                        .connection = 1,
                                        .peer = {}});
      ASSERT_EQ(reply.http_status, 200) << reply.body;
      if (turn % 2 == 0)
        shadow.follow();
      ASSERT_NO_FATAL_FAILURE(expect_the_same(*vm, shadow, "poked, stop " + std::string(stop)));
    }
}

// vCPUs that come while somebody follows.
TEST_F(DirtyLogTest, HasWhatANewVcpuWrites) {
  VmConfig config = probe(1, "scenarios=dirty,io dirty_mib=16");
  config.memory_bytes = 48ULL << 20;
  config.max_cpus = 3;
  const auto vm = started(config);
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(await(*vm, [&] { return cpus_running(*vm) == 1; }));
  Shadow shadow(*vm);
  for (uint32_t cpus = 2; cpus <= 3; ++cpus) {
    const auto added = vm->add_cpu(std::chrono::steady_clock::now() + std::chrono::seconds(30));
    ASSERT_TRUE(added.has_value()) << added.error().message();
    shadow.follow();
    ASSERT_TRUE(await(*vm, [&] { return cpus_running(*vm) == cpus; }));
    ASSERT_NO_FATAL_FAILURE(goes_on(*vm));
    ASSERT_NO_FATAL_FAILURE(expect_the_same(*vm, shadow, std::to_string(cpus) + " vCPUs"));
  }
}

} // namespace
} // namespace stopvisor::vmm::testing
