// SPDX-License-Identifier: Apache-2.0
// A machine that is saved at any moment and restored into another one goes on as if nothing had happened.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string_view>

#include "tests/kvm/raw_guest.h"
#include "tests/kvm/state_fixture.h"
#include "tests/sanitized.h"
#include "vmm/acpi/platform.h"
#include "vmm/devices/acpi_power.h"

namespace stopvisor::vmm::testing {
namespace {

// In how many other machines a guest lives, by how much is to be tested: STOPVISOR_TEST_MODE, quick where it says
// nothing. A few under a sanitizer: it looks at the code, and the rounds at the moments.
uint32_t lives(uint32_t quick, uint32_t full, uint32_t thorough) {
  if (kAddressSanitizer)
    full = quick;
  const char* const mode = std::getenv("STOPVISOR_TEST_MODE"); // NOLINT(concurrency-mt-unsafe): nobody sets it
  const std::string_view word = mode == nullptr ? "quick" : mode;
  return word == "long" ? thorough : word == "full" ? full : quick;
}

class State : public StateTest {
protected:
  // Lets it go on for a while that is never the same: some slices of one vCPU, and then some.
  void run_on(const Vm& vm) {
    const auto cpu = static_cast<uint32_t>(random_() % vm.cpu_count());
    const uint64_t before = results(vm, cpu).slices;
    const uint64_t more = random_() % 8;
    ASSERT_TRUE(await(vm, [&] { return results(vm, cpu).slices >= before + more; }));
    for (uint64_t turns = random_() % 20'000; turns != 0; --turns)
      (void)vm.state();
  }

  // Nothing that the guest keeps an eye on is wrong. CONTEXT: under a stop.
  static std::string complaints(const Vm& vm) {
    std::string text;
    for (uint32_t cpu = 0; cpu < vm.cpu_count(); ++cpu) {
      const probe::CpuResults seen = results(vm, cpu);
      const DoorbellCounts device = vm.doorbell_counts(cpu);
      const auto check = [&](bool good, const char* what) {
        if (!good)
          text += "vCPU " + std::to_string(cpu) + ": " + what + "; ";
      };
      check(seen.ledger_torn == 0, "a torn ledger");
      check(seen.code_torn == 0, "torn code");
      check(seen.io_bad == 0, "an answer out of turn");
      check(seen.mail_bad == 0, "bad mail");
      check(device.lost == 0 && device.doubled == 0, "an access lost or doubled");
      check(device.port_writes - seen.io_port_writes <= 1, "port writes");
      check(device.port_reads - seen.io_port_reads <= 1, "port reads");
      check(device.mmio_writes - seen.io_mmio_writes <= 1, "MMIO writes");
      check(device.mmio_reads - seen.io_mmio_reads <= 1, "MMIO reads");
    }
    return text;
  }

  static void write_ledger(const Vm& vm, uint64_t value) {
    for (uint32_t word = 0; word < probe::kLedgerWords; ++word)
      poke(vm, probe::ledger_word_gpa(word), value);
  }
  static void rewrite_code(const Vm& vm, uint8_t value) {
    std::array<uint8_t, 8> immediate{};
    immediate.fill(value);
    for (uint32_t site = 0; site < probe::kCodeSites; ++site)
      ASSERT_TRUE(vm.memory().write(Gpa{probe::code_site_gpa(site) + probe::kCodeImmediateOffset},
                                    std::as_bytes(std::span(immediate))));
  }

  // Saves `vm` under a hold, and puts another one in its place, which is held from its first instruction on.
  void pass_on(std::unique_ptr<Vm>& vm) {
    ASSERT_TRUE(vm->stops().acquire_hold().has_value());
    const Sections sections = saved_twice(*vm);
    ASSERT_FALSE(sections.empty());
    ASSERT_EQ(complaints(*vm), "");
    const DoorbellCounts rung = vm->doorbell_counts();
    auto next = restored(*vm, sections);
    ASSERT_NE(next, nullptr);
    EXPECT_EQ(next->doorbell_counts(), rung);
    EXPECT_EQ(differences(without_clocks(sections), without_clocks(saved_twice(*next))), "") << "as restored";
    vm = std::move(next);
  }

  // Rounds of running, saving, restoring. Everybody works on in each of them.
  void rounds(uint32_t cpus, uint32_t count, const std::string& cmdline, bool sleeps) {
    VmConfig config = probe(cpus, cmdline);
    config.memory_bytes = 48ULL << 20;
    auto vm = started(config);
    ASSERT_NE(vm, nullptr);
    ASSERT_TRUE(await(*vm, [&] { return cpus_running(*vm) == cpus; }));
    for (uint32_t round = 1; round <= count; ++round) {
      ASSERT_NO_FATAL_FAILURE(run_on(*vm));
      ASSERT_NO_FATAL_FAILURE(pass_on(vm));
      std::vector<probe::CpuResults> before;
      for (uint32_t cpu = 0; cpu < cpus; ++cpu)
        before.push_back(results(*vm, cpu));
      write_ledger(*vm, round);
      rewrite_code(*vm, static_cast<uint8_t>(round));
      ASSERT_TRUE(vm->start().has_value());
      for (uint32_t cpu = 0; cpu < cpus; ++cpu)
        ASSERT_TRUE(await(*vm, [&] { return results(*vm, cpu).slices >= before[cpu].slices + 6; })) << cpu;
      if (sleeps) {
        const uint64_t woken = before[cpus - 1].idle_wakeups;
        ASSERT_TRUE(await(*vm, [&] { return results(*vm, cpus - 1).idle_wakeups > woken; }));
      }
    }
    ASSERT_TRUE(vm->stops().acquire_hold().has_value());
    EXPECT_EQ(complaints(*vm), "");
  }

  std::mt19937 random_{20261123}; // NOLINT(bugprone-random-generator-seed): the same in each run
};

uint32_t rounds_each() {
  return lives(3, 16, 500);
}

TEST_F(State, OfABusyProbeGoesOnInAnotherVmWith1Vcpu) {
  rounds(1, rounds_each(), "", false);
}
TEST_F(State, OfABusyProbeGoesOnInAnotherVmWith2Vcpus) {
  rounds(2, rounds_each(), "", false);
}
TEST_F(State, OfABusyProbeGoesOnInAnotherVmWith4Vcpus) {
  rounds(4, rounds_each(), "", false);
}
TEST_F(State, OfABusyProbeGoesOnInAnotherVmWith8Vcpus) {
  rounds(8, rounds_each(), "", false);
}
TEST_F(State, OfASleepingProbeWakesInAnotherVm) {
  rounds(2, lives(2, 12, 500), "scenarios=io,idle timer_hz=500", true);
}
TEST_F(State, OfAllScenariosGoesOnInAnotherVm) {
  rounds(2, lives(2, 8, 500), "scenarios=gap,ledger,code,dirty,io,idle timer_hz=500 dirty_mib=4", true);
}

// The probe leaves vector registers alone, so what is put there stays through everything that follows.
TEST_F(State, CarriesVectorRegistersThroughLivesInSeveralVms) {
  auto vm = started(probe(2, ""));
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(await(*vm, [&] { return cpus_running(*vm) == 2; }));
  ASSERT_TRUE(vm->stops().acquire_hold().has_value());
  Sections sections = saved_twice(*vm);
  size_t components = 0;
  for (uint32_t cpu = 0; cpu < 2; ++cpu)
    components += fill_vector_registers(sections, cpu);
  EXPECT_GE(components, 2U); // XMM of both at least; the log says how many
  std::printf("             %zu vector components\n", components);
  const StateSection first = *find(sections, StateKind::kVcpuXsave, 0);
  const StateSection second = *find(sections, StateKind::kVcpuXsave, 1);
  vm = restored(*vm, sections);
  for (int life = 0; life < 5; ++life) {
    ASSERT_NE(vm, nullptr);
    ASSERT_TRUE(vm->start().has_value());
    ASSERT_NO_FATAL_FAILURE(run_on(*vm));
    ASSERT_TRUE(vm->stops().acquire_hold().has_value());
    Sections now = saved_twice(*vm);
    ASSERT_FALSE(now.empty());
    EXPECT_EQ(*find(now, StateKind::kVcpuXsave, 0), first);
    EXPECT_EQ(*find(now, StateKind::kVcpuXsave, 1), second);
    vm = restored(*vm, now);
  }
}

// KVM does not look at the interrupts in service when it reckons the priority of a local APIC that it is given.
TEST_F(State, OfAVcpuThatServesAnInterruptIsTheSameWhenRestored) {
  auto vm = started(probe(1, ""));
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(await(*vm, [&] { return cpus_running(*vm) == 1; }));
  ASSERT_TRUE(vm->stops().acquire_hold().has_value());
  Sections sections = saved_twice(*vm);
  StateSection* const lapic = find(sections, StateKind::kVcpuLapic, 0);
  ASSERT_NE(lapic, nullptr);
  constexpr size_t kVector = 0x55, kInService = 0x100, kProcessorPriority = 0xa0;
  lapic->payload[kInService + kVector / 32 * 16 + kVector % 32 / 8] |= static_cast<std::byte>(1U << (kVector % 8));
  const auto priority = std::to_integer<size_t>(lapic->payload[kProcessorPriority]);
  lapic->payload[kProcessorPriority] = static_cast<std::byte>(std::max(priority, kVector & 0xf0));
  const auto next = restored(*vm, sections);
  ASSERT_NE(next, nullptr);
  EXPECT_EQ(differences(without_clocks(sections), without_clocks(saved_twice(*next))), "");
}

// vCPU 1 is out of the machine, and comes back in the other one.
TEST_F(State, KeepsAVcpuOfflineUntilItIsBroughtBack) {
  using std::chrono::steady_clock;
  const auto soon = [] { return steady_clock::now() + std::chrono::seconds(20); };
  auto vm = started(probe(3, ""));
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(await(*vm, [&] { return cpus_running(*vm) == 3; }));
  ASSERT_TRUE(vm->offline_cpu(1, soon(), false).has_value());
  ASSERT_NO_FATAL_FAILURE(pass_on(vm));
  ASSERT_TRUE(vm->start().has_value());
  EXPECT_EQ(vm->vcpu_status(1).presence, VcpuPresence::kOffline);
  const uint64_t slices = results(*vm, 2).slices;
  ASSERT_TRUE(await(*vm, [&] { return results(*vm, 2).slices > slices + 3; }));
  const auto back = vm->online_cpu(1, soon());
  ASSERT_TRUE(back.has_value()) << back.error().message();
  ASSERT_TRUE(await(*vm, [&] { return cpus_running(*vm) == 3; }));
  ASSERT_NO_FATAL_FAILURE(pass_on(vm));
}

TEST_F(State, OfAMachineThatHasNotRunYetStartsIt) {
  auto vm = make(probe(2, ""));
  ASSERT_NE(vm, nullptr);
  const Sections sections = saved_twice(*vm);
  vm = restored(*vm, sections);
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(vm->start().has_value());
  ASSERT_TRUE(await(*vm, [&] { return cpus_running(*vm) == 2; }));
}

TEST_F(State, DoesNotNeedTheFilesThatWereBooted) {
  std::optional<RawKernel> kernel(std::in_place, Code().spin());
  auto vm = make(raw(kernel->path()));
  ASSERT_NE(vm, nullptr);
  const Sections sections = saved_twice(*vm);
  kernel.reset();
  const auto next = restored(*vm, sections);
  ASSERT_NE(next, nullptr);
  EXPECT_EQ(next->device_tree(), vm->device_tree()) << "what the guest was told";
  ASSERT_TRUE(next->start().has_value());
  EXPECT_TRUE(next->stops().acquire_hold().has_value());
  EXPECT_EQ(next->state(), VmState::kHeld);
}

TEST_F(State, IsToldToBeAnotherGuestsUnlessThereIsNoOther) {
  auto vm = started(probe(1, ""));
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(await(*vm, [&] { return cpus_running(*vm) == 1; }));
  ASSERT_TRUE(vm->stops().acquire_hold().has_value());
  Sections sections = saved_twice(*vm);
  constexpr size_t kRedirections = 20; // of an I/O APIC's section
  constexpr size_t kVector = 0x55;
  StateSection* const io_apic = find(sections, StateKind::kIrqChip, 2);
  ASSERT_NE(io_apic, nullptr);
  const auto entry = io_apic->payload.begin() + kRedirections + 8L * acpi::kEventGsi;
  std::fill_n(entry, 8, std::byte{0}); // to vCPU 0, as an edge
  *entry = std::byte{kVector};
  const auto generation = [](const Vm& of) {
    std::array<std::byte, 16> id{};
    EXPECT_TRUE(of.memory().read(Gpa{acpi::kGenerationIdGpa}, id));
    return id;
  };
  const auto same = restored(*vm, sections);
  ASSERT_NE(same, nullptr);
  EXPECT_EQ(generation(*same), generation(*vm));
  std::vector<std::unique_ptr<Vm>> clones;
  for (int clone = 0; clone < 2; ++clone) {
    auto next = bare_twin(*vm);
    ASSERT_NE(next, nullptr);
    copy_memory(*vm, *next);
    ASSERT_TRUE(next->restore_state(sections).has_value());
    EXPECT_NE(generation(*next), generation(*vm));
    Sections told = saved_twice(*next);
    StateSection* const event = find(told, StateKind::kAcpiPower, 0);
    ASSERT_NE(event, nullptr);
    EXPECT_EQ(event->payload.front(), std::byte{AcpiPower::kGenerationEvent});
    StateSection* const lapic = find(told, StateKind::kVcpuLapic, 0);
    ASSERT_NE(lapic, nullptr);
    const std::byte requests = lapic->payload[0x200 + kVector / 32 * 0x10 + kVector % 32 / 8];
    EXPECT_NE(requests & std::byte{1U << kVector % 8}, std::byte{0}) << "its interrupt is on its way";
    EXPECT_EQ(next->written_pages().take(), std::vector{Gpa{acpi::kGenerationIdGpa}});
    clones.push_back(std::move(next));
  }
  EXPECT_NE(generation(*clones[0]), generation(*clones[1]));
}

class Refusal : public State {
protected:
  void SetUp() override {
    State::SetUp();
    if (IsSkipped())
      return;
    vm_ = make(probe(2, ""));
    ASSERT_NE(vm_, nullptr);
    sections_ = saved_twice(*vm_);
  }
  // What restoring `sections_` says.
  std::string restoring() {
    auto twin = bare_twin(*vm_);
    if (twin == nullptr)
      return "no VM";
    const auto done = twin->restore_state(sections_);
    return done ? "" : done.error().message();
  }
  std::unique_ptr<Vm> vm_;
  Sections sections_;
};

TEST_F(Refusal, NamesTheSectionThatIsMissing) {
  ASSERT_EQ(restoring(), "");
  const Sections all = sections_;
  for (size_t gone = 0; gone < all.size(); ++gone) {
    if (all[gone].kind == static_cast<uint32_t>(StateKind::kMachine))
      continue;
    sections_ = all;
    sections_.erase(sections_.begin() + static_cast<ptrdiff_t>(gone));
    const std::string said = restoring();
    const bool counted = all[gone].kind == static_cast<uint32_t>(StateKind::kVcpuRegs);
    EXPECT_NE(said.find(counted ? "vCPUs" : name_of_section(all[gone].kind, all[gone].instance)), std::string::npos)
        << said;
  }
}

TEST_F(Refusal, NamesTheSectionOfAnotherVersionOrLength) {
  const Sections all = sections_;
  for (size_t which = 0; which < all.size(); ++which) {
    const std::string name = name_of_section(all[which].kind, all[which].instance);
    sections_ = all;
    sections_[which].version = 7;
    EXPECT_EQ(restoring(), "restore: " + name + ": it is of version 7, and this program reads version 1");
    sections_ = all;
    sections_[which].payload.pop_back();
    EXPECT_NE(restoring().find(name), std::string::npos) << name;
  }
}

TEST_F(Refusal, NamesEachDifferenceBetweenTheMachines) {
  VmConfig config = vm_->config();
  config.bare = true;
  config.cpus = 3;
  config.memory_bytes += 1ULL << 20;
  const auto other = make(config);
  ASSERT_NE(other, nullptr);
  const auto done = other->restore_state(sections_);
  ASSERT_FALSE(done.has_value());
  const auto mebibytes = [](const Vm& vm) { return std::to_string(vm.memory().size_bytes() >> 20) + " MiB"; };
  EXPECT_EQ(done.error().message(), "restore: the machine: it is not like the one that was saved: memory@0: " +
                                        mebibytes(*other) + ", saved: " + mebibytes(*vm_) + "; vCPUs: 3, saved: 2");
}

TEST_F(Refusal, NamesAFeatureThatTheProcessorLacks) {
  StateSection* const leaves = find(sections_, StateKind::kVcpuCpuid, 1);
  ASSERT_NE(leaves, nullptr);
  for (size_t at = 4; at + 28 <= leaves->payload.size(); at += 28)
    if (leaves->payload[at] == std::byte{7} && leaves->payload[at + 4] == std::byte{0})
      leaves->payload[at + 24 + 3] |= std::byte{0x01}; // EDX bit 24
  EXPECT_EQ(restoring(), "restore: this host's processor: it lacks amx_tile, which the guest was told it has");
}

} // namespace
} // namespace stopvisor::vmm::testing
