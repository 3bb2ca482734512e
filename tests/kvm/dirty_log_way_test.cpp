// SPDX-License-Identifier: Apache-2.0
// Each way in which KVM goes about its dirty log tells the same: also those of older kernels, which a Vm does not
// take here. A machine of one vCPU and no devices writes one page in a turn.
#include <asm/kvm_para.h>

#include <array>
#include <atomic>
#include <string>

#include "tests/kvm/kvm_fixture.h"
#include "tests/kvm/raw_guest.h"
#include "vmm/dirty_log.h"
#include "vmm/kvm_vcpu.h"
#include "vmm/kvm_vm.h"
#include "vmm/state/vcpu_msrs.h"

namespace stopvisor::vmm::testing {
namespace {

// Not a multiple of 64 pages, and more than one piece that is protected at once.
constexpr uint64_t kMemory = (uint64_t{130} << 20) + 3 * kPageBytes;
constexpr uint64_t kPointer = 0x20'1000; // the host's: where to write

class DirtyLogWays : public KvmTest, public ::testing::WithParamInterface<DirtyLogWay> {
protected:
  void SetUp() override {
    KvmTest::SetUp();
    if (IsSkipped())
      return;
    system_.emplace(*KvmSystem::open());
    if (best_dirty_log_way(*system_) < GetParam())
      GTEST_SKIP() << "this KVM does not have it";
    memory_.emplace(*GuestMemory::create(kMemory, MemoryBacking::kAnonymous));
    written_.emplace(memory_->slots());
    kvm_.emplace(*KvmVm::create(*system_, 1, *memory_));
    vcpu_.emplace(*KvmVcpu::create(*system_, *kvm_, 0, 1));
    Code code; // mov kPointer, %eax; mov %ebx, (%eax); out %al, $0x80; jmp back
    code.bytes({0xa1}).u32(kPointer).bytes({0x89, 0x18, 0xe6, 0x80, 0xeb, 0xf5});
    const std::vector<uint8_t>& bytes = code;
    ASSERT_TRUE(memory_->write(Gpa{kRawEntry}, std::as_bytes(std::span(bytes))));
    ASSERT_TRUE(vcpu_->set_entry(PvhEntry{kRawEntry, 0x1234'5678}).has_value());
  }
  void run_to_exit() const {
    do {
      const int error = vcpu_->enter();
      ASSERT_TRUE(error == 0 || error == EINTR) << error;
    } while (vcpu_->run().exit_reason != KVM_EXIT_IO);
  }
  void guest_writes(uint64_t gpa) const {
    const auto pointer = static_cast<uint32_t>(gpa);
    ASSERT_TRUE(memory_->write(Gpa{kPointer}, std::as_bytes(std::span(&pointer, 1))));
    run_to_exit();
  }
  std::expected<std::unique_ptr<DirtyLog>, Error> begin() {
    return begin_dirty_log("test", {*kvm_, *memory_, *written_, taken_}, GetParam());
  }
  // The pages that a look has, by their numbers.
  static std::vector<uint64_t> numbers(const DirtyPages& pages) {
    std::vector<uint64_t> list;
    const DirtyPages::Slot& slot = pages.slots()[0];
    for (uint64_t page = 0; page < slot.pages; ++page)
      if ((slot.words[page / 64] >> (page % 64) & 1) != 0)
        list.push_back(page);
    return list;
  }
  std::vector<uint64_t> taken(DirtyLog& log) const {
    DirtyPages pages(memory_->slots());
    EXPECT_TRUE(log.take(pages).has_value());
    return numbers(pages);
  }
  std::vector<uint64_t> read(DirtyLog& log) const {
    DirtyPages pages(memory_->slots());
    EXPECT_TRUE(log.read(pages).has_value());
    return numbers(pages);
  }
  using Pages = std::vector<uint64_t>;

  std::optional<KvmSystem> system_;
  std::optional<GuestMemory> memory_;
  std::optional<WrittenPages> written_;
  std::optional<KvmVm> kvm_;
  std::optional<KvmVcpu> vcpu_;
  std::atomic<bool> taken_{false};
};

TEST_P(DirtyLogWays, TellEachPageOnceForEachTimeItWasWritten) {
  guest_writes(0x80'0000);
  written_->note_data(Gpa{0x90'0000}, 1); // before anybody logs
  const auto log = begin();
  ASSERT_TRUE(log.has_value()) << log.error().message();
  EXPECT_EQ(taken(**log), Pages{});
  for (int turn = 0; turn < 3; ++turn)
    for (const uint64_t page :
         {uint64_t{0x800}, uint64_t{0x900}, (uint64_t{100} << 20) / kPageBytes, kMemory / kPageBytes - 1}) {
      guest_writes(page * kPageBytes + 8);
      written_->note_data(Gpa{0x40'0000}, 1);
      EXPECT_EQ(taken(**log), (Pages{0x400, page}));
      EXPECT_EQ(taken(**log), Pages{});
    }
}

TEST_P(DirtyLogWays, TellAgainWhatWasOnlyRead) {
  const auto log = begin();
  ASSERT_TRUE(log.has_value()) << log.error().message();
  guest_writes(0x80'0000);
  EXPECT_EQ(read(**log), Pages{0x800});
  guest_writes(0x90'0000);
  written_->note_data(Gpa{0x40'0000}, 1);
  EXPECT_EQ(read(**log), (Pages{0x400, 0x800, 0x900}));
  EXPECT_EQ(read(**log), (Pages{0x400, 0x800, 0x900}));
  EXPECT_EQ(taken(**log), (Pages{0x400, 0x800, 0x900}));
  EXPECT_EQ(read(**log), Pages{});
  guest_writes(0x80'0000); // is noticed once more
  EXPECT_EQ(read(**log), Pages{0x800});
}

TEST_P(DirtyLogWays, BeginAnew) {
  for (int turn = 0; turn < 3; ++turn) {
    const auto log = begin();
    ASSERT_TRUE(log.has_value()) << log.error().message();
    EXPECT_EQ(taken(**log), Pages{});
    guest_writes(0x80'0000);
    EXPECT_EQ(taken(**log), Pages{0x800});
    guest_writes(0x90'0000); // nobody asks
  }
}

// KVM writes a guest's clocks by itself, when it enters the guest and when it is told where they are.
TEST_P(DirtyLogWays, TellWhatKvmWritesByItself) {
  guest_writes(0x80'0000);
  const auto log = begin();
  ASSERT_TRUE(log.has_value()) << log.error().message();
  std::array<kvm_msr_entry, 1> wall_clock{{{MSR_KVM_WALL_CLOCK_NEW, 0, 0x50'0000}}};
  ASSERT_TRUE(set_msrs(vcpu_->fd(), wall_clock).has_value());
  EXPECT_EQ(taken(**log), Pages{0x500});
  std::array<kvm_msr_entry, 1> system_time{{{MSR_KVM_SYSTEM_TIME_NEW, 0, 0x60'0001}}};
  ASSERT_TRUE(set_msrs(vcpu_->fd(), system_time).has_value());
  guest_writes(0x80'0000);
  EXPECT_EQ(taken(**log), (Pages{0x600, 0x800}));
}

INSTANTIATE_TEST_SUITE_P(All, DirtyLogWays,
                         ::testing::Values(DirtyLogWay::kAtOnce, DirtyLogWay::kWhenAsked, DirtyLogWay::kFromStart),
                         [](const auto& way) {
                           return std::string(way.param == DirtyLogWay::kAtOnce      ? "AtOnce"
                                              : way.param == DirtyLogWay::kWhenAsked ? "WhenAsked"
                                                                                     : "FromStart");
                         });

} // namespace
} // namespace stopvisor::vmm::testing
