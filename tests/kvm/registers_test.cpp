// SPDX-License-Identifier: Apache-2.0
// Registers that an exit left behind are those that KVM would tell.
#include <future>

#include "tests/kvm/kvm_fixture.h"
#include "tests/kvm/raw_guest.h"
#include "tests/kvm/snare.h"
#include "vmm/kvm_vcpu_state.h"

namespace stopvisor::vmm::testing {
namespace {

class NotedRegisters : public KvmTest {
protected:
  // One vCPU without a thread.
  void make_vcpu() {
    system_.emplace(*KvmSystem::open());
    memory_.emplace(*GuestMemory::create(4 << 20, MemoryBacking::kAnonymous));
    kvm_.emplace(*KvmVm::create(*system_, 1, *memory_));
    vcpu_.emplace(*KvmVcpu::create(*system_, *kvm_, 0, 1));
    initial_.emplace(*VcpuState::save(*vcpu_, *system_));
  }
  [[nodiscard]] int leave_at_once(bool note) const {
    vcpu_->set_immediate_exit(true);
    return vcpu_->enter(note);
  }

  std::optional<KvmSystem> system_;
  std::optional<GuestMemory> memory_;
  std::optional<KvmVm> kvm_;
  std::optional<KvmVcpu> vcpu_;
  std::optional<VcpuState> initial_;
};

// What a stop gives: the registers as they were noted, and as KVM gives them.
struct Both {
  Registers noted, asked;
};
std::expected<Both, std::string> look(Vm& vm, uint32_t cpu) {
  Both both;
  const auto stop = vm.stops().run([&](stopper::StopContext&) {
    both.noted = vm.registers(cpu, false).value_or(Registers{});
    both.asked = vm.registers(cpu).value_or(Registers{}); // asks KVM in any case
    both.asked.halted = both.asked.waiting = false;
    return 0;
  });
  if (!stop)
    return std::unexpected(vm.explain("stop", stop.error()).message());
  return both;
}

TEST_F(NotedRegisters, AreThereAfterAnEntryThatWasToNoteThemAlone) {
  make_vcpu();
  EXPECT_FALSE(vcpu_->noted());
  EXPECT_EQ(leave_at_once(true), EINTR);
  EXPECT_EQ(vcpu_->noted(), system_->capability(KVM_CAP_SYNC_REGS) != 0);
  EXPECT_EQ(leave_at_once(false), EINTR);
  EXPECT_FALSE(vcpu_->noted());
  vcpu_->note_registers();
  EXPECT_TRUE(vcpu_->noted());
  EXPECT_EQ(vcpu_->registers(false).value_or(Registers{}).rip, 0xfff0U);
}

TEST_F(NotedRegisters, AreForgottenWhenSomebodySetsThem) {
  make_vcpu();
  vcpu_->note_registers();
  ASSERT_TRUE(vcpu_->set_entry(PvhEntry{.rip = 0x1234, .rbx = 0x5678}).has_value());
  EXPECT_EQ(vcpu_->registers(false).value_or(Registers{}).rip, 0x1234U);
  vcpu_->note_registers();
  ASSERT_TRUE(initial_->restore(*vcpu_).has_value());
  EXPECT_EQ(vcpu_->registers(false).value_or(Registers{}).rip, 0xfff0U);
}

TEST_F(NotedRegisters, AreThoseKvmTellsOnEveryVcpu) {
  const auto vm = started(probe(4, "scenarios=ledger,code"));
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(await(*vm, [&] { return cpus_running(*vm) == 4; }));
  vm->register_wishes().add();
  for (int turn = 0; turn < 100; ++turn)
    for (uint32_t cpu = 0; cpu < 4; ++cpu) {
      const auto both = look(*vm, cpu);
      ASSERT_TRUE(both.has_value()) << both.error();
      EXPECT_NE(both->asked.rip, 0U);
      EXPECT_EQ(both->noted, both->asked) << "vCPU " << cpu;
    }
  vm->register_wishes().remove();
}

// Rule 2: the instruction of an access is finished first, with what it puts into registers.
TEST_F(NotedRegisters, HaveWhatAPortGave) {
  const RawKernel kernel(Code().dx(probe::kDoorbellPortBase).bytes({0xed, 0xeb, 0xfd})); // in %dx, %eax; jmp
  const auto vm = started(raw(kernel.path()));
  ASSERT_NE(vm, nullptr);
  vm->register_wishes().add();
  ASSERT_TRUE(await(*vm, [&] { return vm->doorbell_counts(0).port_reads != 0; }));
  for (int turn = 0; turn < 300; ++turn) {
    const auto both = look(*vm, 0);
    ASSERT_TRUE(both.has_value()) << both.error();
    ASSERT_EQ(both->noted, both->asked);
  }
}

// The same with the thread caught when the access was served, and the stop asked for there.
TEST_F(NotedRegisters, HaveWhatAnMmioReadGave) {
  const RawKernel kernel(mmio_reads());
  Snare snare;
  const auto vm = make(raw(kernel.path()));
  ASSERT_NE(vm, nullptr);
  vm->register_wishes().add();
  vm->use_hooks(&snare);
  ASSERT_TRUE(vm->start().has_value());
  for (int turn = 0; turn < 20; ++turn) {
    catch_at(*vm, snare, "KVM_EXIT_MMIO");
    auto stop = std::async(std::launch::async, [&] { return look(*vm, 0); });
    snare.signalled.acquire();
    snare.let_go.release();
    const auto both = stop.get();
    ASSERT_TRUE(both.has_value()) << both.error();
    EXPECT_EQ(both->noted.rip, kRawEntry + kAfterMmioRead);
    EXPECT_EQ(both->noted.general[0], 0xffff'ffffU);
    EXPECT_EQ(both->noted, both->asked);
  }
}

} // namespace
} // namespace stopvisor::vmm::testing
