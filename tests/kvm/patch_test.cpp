// SPDX-License-Identifier: Apache-2.0
// Live patching of real guests: no reader ever sees a mixture, and what is taken back is there byte for byte.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <set>
#include <thread>
#include <vector>

#include "tests/kvm/kvm_fixture.h"
#include "tests/kvm/raw_guest.h"
#include "tests/sanitized.h"
#include "tools/patch/engine.h"
#include "tools/patch/vm_guest.h"
#include "tools/probe/probe_view.h"
#include "vmm/control/guest_access.h"
#include "vmm/units.h"

namespace stopvisor::patch {
namespace {

using vmm::Gpa;
using vmm::Status;
using vmm::Vm;
using vmm::testing::kRawEntry;
using vmm::testing::RawKernel;

constexpr uint32_t kCpus = 8;
constexpr uint64_t kFree = 0x80'0000; // memory the probe guest does not touch

// Rounds wait for the guest's readers, so that a thousand take minutes: a thousand with tools/test --long alone,
// and few not under a sanitizer.
uint32_t rounds() {
  if (kAddressSanitizer)
    return 20;
  const char* const mode = std::getenv("STOPVISOR_TEST_MODE"); // NOLINT(concurrency-mt-unsafe): nobody sets it
  return mode == nullptr || std::string_view(mode) == "quick" ? 50 : std::string_view(mode) == "full" ? 300 : 1000;
}

// A guest whose memory cannot be written from the nth write on, as a read-only slot's cannot.
class RefusingGuest final : public Guest {
public:
  explicit RefusingGuest(VmGuest& guest) : guest_(guest) {}
  size_t refused_write = 0; // from 1; 0: none

  std::expected<void, vmm::Error> under_stop(const Wanted& wanted, Body body) override {
    return guest_.under_stop(wanted, body);
  }
  void expect_registers(bool expected) noexcept override { guest_.expect_registers(expected); }
  std::optional<StopTimes> times_of(uint64_t sequence) override { return guest_.times_of(sequence); }
  const vmm::GuestMemory& memory() const noexcept override { return guest_.memory(); }
  uint64_t resets() const noexcept override { return guest_.resets(); }
  uint32_t cpus() const noexcept override { return guest_.cpus(); }
  std::expected<vmm::Registers, vmm::Error> registers(uint32_t cpu) const override { return guest_.registers(cpu); }
  bool waits_to_start(uint32_t cpu) const override { return guest_.waits_to_start(cpu); }
  bool write(Gpa gpa, std::span<std::byte> to, std::span<const std::byte> from) noexcept override {
    return ++writes_ != refused_write && guest_.write(gpa, to, from);
  }

private:
  VmGuest& guest_;
  size_t writes_ = 0;
};

class WaitingClock final : public Clock {
public:
  std::function<void()> on_wait;
  int waits = 0;
  void wait(std::chrono::nanoseconds duration) override {
    ++waits;
    if (on_wait)
      on_wait();
    else
      Clock::wait(duration);
  }
};

class Patching : public vmm::testing::KvmTest {
protected:
  // An engine and what it works on.
  struct Patched {
    explicit Patched(Vm& vm) : knowledge(vm), guest(vm, knowledge), refusing(guest), engine(refusing, clock) {}
    vmm::GuestKnowledge knowledge;
    VmGuest guest;
    RefusingGuest refusing;
    WaitingClock clock;
    Engine engine;
  };

  static Options options() {
    Options made;
    made.deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    return made;
  }
  static Write write_at(uint64_t address, SiteKind kind, Bytes expect, Bytes bytes) {
    Write write;
    write.at = {Place::Kind::kVcpu, address, 0, {}};
    write.kind = kind;
    write.expect = std::move(expect);
    write.operation.bytes = std::move(bytes);
    return write;
  }
  static Bytes of_word(uint64_t value) {
    Bytes bytes(8);
    std::memcpy(bytes.data(), &value, 8);
    return bytes;
  }
  // All words of the ledger and all code sites get the value of all bytes equal: on 8 pages each, the code over the
  // ends of pages and cache lines.
  static Manifest everywhere(uint64_t from, uint64_t to) {
    Manifest manifest;
    manifest.name = "everywhere";
    manifest.version = "1";
    for (uint32_t word = 0; word < probe::kLedgerWords; ++word)
      manifest.writes.push_back(
          write_at(probe::ledger_word_gpa(word), SiteKind::kData, of_word(from), of_word(to)));
    for (uint32_t site = 0; site < probe::kCodeSites; ++site)
      manifest.writes.push_back(write_at(probe::code_site_gpa(site) + probe::kCodeImmediateOffset, SiteKind::kCode,
                                         of_word(from), of_word(to)));
    for (Write& write : manifest.writes) // the bytes that are written are an operand: the window is its instruction
      if (write.kind == SiteKind::kCode) {
        write.function = FunctionExtent{write.at, probe::kCodeSiteBytes};
        write.function->at.value -= probe::kCodeImmediateOffset;
      }
    return manifest;
  }
  static Bytes watched_memory(const Vm& vm) {
    Bytes bytes;
    for (const auto& [gpa, size] : {std::pair{probe::kLedgerGpa, uint64_t{0x8000}}, {probe::kCodeGpa, 0x9000}}) {
      Bytes part(size);
      EXPECT_TRUE(vm.memory().read(Gpa{gpa}, part));
      bytes.insert(bytes.end(), part.begin(), part.end());
    }
    return bytes;
  }
  // Each vCPU has gone over all words and all sites once from first to last since now.
  static void await_passes(const Vm& vm) {
    std::vector<std::pair<uint64_t, uint64_t>> before;
    for (uint32_t cpu = 0; cpu < kCpus; ++cpu)
      before.emplace_back(results(vm, cpu).ledger_reads, results(vm, cpu).code_calls);
    for (uint32_t cpu = 0; cpu < kCpus; ++cpu)
      await(vm, [&] {
        const probe::CpuResults now = results(vm, cpu);
        const bool passed = now.ledger_reads >= before[cpu].first + 2 && now.code_calls >= before[cpu].second + 2;
        if (!passed)
          std::this_thread::sleep_for(std::chrono::milliseconds(1)); // the guest tells nobody when it writes
        return passed;
      });
  }
  static void expect_untorn(const Vm& vm) {
    for (uint32_t cpu = 0; cpu < kCpus; ++cpu) {
      EXPECT_EQ(results(vm, cpu).ledger_torn, 0U) << "vCPU " << cpu;
      EXPECT_EQ(results(vm, cpu).code_torn, 0U) << "vCPU " << cpu;
    }
  }
  static std::unique_ptr<Vm> probe_vm() {
    auto vm = started(probe(kCpus, "scenarios=ledger,code"));
    if (vm != nullptr)
      await(*vm, [&] { return cpus_running(*vm) == kCpus; });
    return vm;
  }
  static std::string message(const Result& result) { return result ? "" : result.error().error.message(); }
};

TEST_F(Patching, ManyRoundsLeaveNoReaderAMixtureAndTheOriginalAtTheEnd) {
  const auto vm = probe_vm();
  ASSERT_NE(vm, nullptr);
  Patched patched(*vm);
  const Bytes original = watched_memory(*vm);
  Options many = options();
  many.retries = 1000;
  for (uint32_t round = 1; round <= rounds(); ++round) {
    many.deadline = options().deadline;
    const uint64_t value = 0x0101'0101'0101'0101ULL * (1 + round % 200);
    const auto applied = patched.engine.apply(everywhere(0, value), many);
    ASSERT_TRUE(applied.has_value()) << round << ": " << message(applied);
    await_passes(*vm); // else a reader that sleeps over both changes sees old, new and old again
    const auto reverted = patched.engine.revert("everywhere", many);
    ASSERT_TRUE(reverted.has_value()) << round << ": " << message(reverted);
    await_passes(*vm);
  }
  expect_untorn(*vm);
  EXPECT_EQ(watched_memory(*vm), original);
  for (uint32_t cpu = 0; cpu < kCpus; ++cpu)
    EXPECT_GT(results(*vm, cpu).code_calls, 2 * rounds());
}

TEST_F(Patching, OneWrongByteAmongAllSitesWritesNothing) {
  const auto vm = probe_vm();
  ASSERT_NE(vm, nullptr);
  Patched patched(*vm);
  const Bytes original = watched_memory(*vm);
  Manifest wrong = everywhere(0, 0x0101'0101'0101'0101ULL);
  wrong.writes[40].expect[7] = std::byte{1};
  const auto refused = patched.engine.apply(wrong, options());
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().error.status, Status::kRefused);
  EXPECT_NE(message(refused).find("site 41 ("), std::string::npos) << message(refused);
  EXPECT_EQ(watched_memory(*vm), original);
  await_passes(*vm);
  for (uint32_t cpu = 0; cpu < kCpus; ++cpu) {
    EXPECT_EQ(results(*vm, cpu).ledger_last, 0U);
    EXPECT_EQ(results(*vm, cpu).code_last, 0U);
  }
}

TEST_F(Patching, AWriteThatFailsHalfWayIsUndoneUnderTheSameStop) {
  const auto vm = probe_vm();
  ASSERT_NE(vm, nullptr);
  Patched patched(*vm);
  const Bytes original = watched_memory(*vm);
  patched.refusing.refused_write = 70;
  const auto failed = patched.engine.apply(everywhere(0, 0x0101'0101'0101'0101ULL), options());
  ASSERT_FALSE(failed.has_value());
  EXPECT_NE(message(failed).find("cannot be written; everything is as it was"), std::string::npos)
      << message(failed);
  EXPECT_EQ(watched_memory(*vm), original);
  await_passes(*vm);
  expect_untorn(*vm);
}

TEST_F(Patching, WhatWasWrittenIsNotedForWhoWatchesDirtyPages) {
  const auto vm = probe_vm();
  ASSERT_NE(vm, nullptr);
  Patched patched(*vm);
  (void)vm->written_pages().take();
  Manifest manifest;
  manifest.name = "pages";
  manifest.version = "1";
  manifest.writes.push_back(write_at(kFree + 0xffc, SiteKind::kData, of_word(0), of_word(1)));
  ASSERT_TRUE(patched.engine.apply(manifest, options()).has_value());
  EXPECT_EQ(vm->written_pages().take(), (std::vector<Gpa>{Gpa{kFree}, Gpa{kFree + 0x1000}}));
}

TEST_F(Patching, PlacesThatAreNotThereAreNamedAndNothingIsWritten) {
  const auto vm = probe_vm();
  ASSERT_NE(vm, nullptr);
  Patched patched(*vm);
  const struct {
    const char* at;
    const char* words;
  } cases[] = {
      {"gva:0x7fff00000000", "gva:0x7fff00000000 is not mapped"},
      {"gpa:0x3ffffff", "are not all RAM"},
      {"gpa:0xd0000000", "are not all RAM"},
      {"gva:0xd0000000", "which is not RAM"}, // the doorbell's page
      {"sym:schedule", "is the built-in probe guest, which is no Linux"},
  };
  for (const auto& one : cases) {
    Manifest manifest;
    manifest.name = "nowhere";
    manifest.version = "1";
    manifest.writes.push_back(write_at(kFree, SiteKind::kData, of_word(0), of_word(1)));
    manifest.writes.push_back(
        write_at(0, SiteKind::kData, {std::byte{0}, std::byte{0}}, {std::byte{1}, std::byte{1}}));
    manifest.writes.back().at = *parse_place(one.at);
    const auto refused = patched.engine.apply(manifest, options());
    ASSERT_FALSE(refused.has_value()) << one.at;
    EXPECT_EQ(refused.error().error.status, Status::kRefused);
    EXPECT_NE(message(refused).find(one.words), std::string::npos) << message(refused);
    EXPECT_EQ(peek<uint64_t>(*vm, kFree), 0U);
  }
}

// nop; cmp dword [0x200000], 0; je back to cmp; mov dword [0x200004], 1; jmp .
const vmm::testing::Code& loop_until_told() {
  static const auto code = vmm::testing::Code()
                               .bytes({0x90, 0x83, 0x3d})
                               .u32(0x20'0000)
                               .bytes({0x00, 0x74, 0xf7, 0xc7, 0x05})
                               .u32(0x20'0004)
                               .u32(1)
                               .spin();
  return code;
}

class PatchingRaw : public Patching {
protected:
  void SetUp() override {
    Patching::SetUp();
    if (IsSkipped())
      return;
    vm_ = make(raw(kernel_.path(), 1));
    ASSERT_NE(vm_, nullptr);
    ASSERT_TRUE(vm_->start().has_value());
    await(*vm_, [&] { // it is in its loop
      const auto rip = rip_under_stop();
      return rip > kRawEntry && rip < kRawEntry + 10;
    });
  }
  uint64_t rip_under_stop() {
    uint64_t rip = 0;
    const auto held = vmm::under_stop(*vm_, "test", options().deadline, [&]() -> std::expected<void, vmm::Error> {
      rip = vm_->registers(0)->rip;
      return {};
    });
    EXPECT_TRUE(held.has_value());
    return rip;
  }
  static Manifest over_the_loop() {
    Manifest manifest;
    manifest.name = "loop";
    manifest.version = "1";
    Bytes nops(10, std::byte{0x90});
    Bytes code(10);
    const std::vector<uint8_t>& guest = loop_until_told();
    std::memcpy(code.data(), guest.data(), code.size());
    manifest.writes.push_back(write_at(kRawEntry, SiteKind::kCode, code, nops));
    manifest.writes[0].at = {Place::Kind::kPhysical, kRawEntry, 0, {}};
    return manifest;
  }

  RawKernel kernel_{loop_until_told()};
  std::unique_ptr<Vm> vm_;
};

TEST_F(PatchingRaw, AVcpuInsideTheWindowIsRefusedWithAllReasons) {
  Patched patched(*vm_);
  Manifest manifest = over_the_loop();
  manifest.writes.push_back(write_at(0, SiteKind::kData, of_word(5), of_word(6)));
  manifest.writes[1].at = {Place::Kind::kPhysical, 0x30'0000, 0, {}};
  manifest.require.push_back({manifest.writes[1].at, 8, Comparison::kEqual, 9, ~0ULL});
  const auto refused = patched.engine.apply(manifest, options());
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().error.status, Status::kRefused);
  std::set<Check> checks;
  for (const Reason& reason : refused.error().reasons)
    checks.insert(reason.check);
  EXPECT_EQ(checks, (std::set<Check>{Check::kExpect, Check::kRequire, Check::kRip})) << message(refused);
  EXPECT_EQ(peek<uint8_t>(*vm_, kRawEntry + 1), 0x83U);
}

TEST_F(PatchingRaw, AVcpuThatLeavesTheWindowLetsARetrySucceed) {
  Patched patched(*vm_);
  const auto refused = patched.engine.apply(over_the_loop(), options());
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().error.status, Status::kBusy) << message(refused);
  Options patient = options();
  patient.retries = 3;
  patched.clock.on_wait = [&] {
    poke<uint32_t>(*vm_, 0x20'0000, 1);
    await(*vm_, [&] { return peek<uint32_t>(*vm_, 0x20'0004) == 1; });
  };
  const auto applied = patched.engine.apply(over_the_loop(), patient);
  ASSERT_TRUE(applied.has_value()) << message(applied);
  EXPECT_EQ(patched.clock.waits, 1);
  EXPECT_EQ(applied->cost.attempts, 2U);
  EXPECT_EQ(peek<uint8_t>(*vm_, kRawEntry + 9), 0x90U);
}

} // namespace
} // namespace stopvisor::patch
