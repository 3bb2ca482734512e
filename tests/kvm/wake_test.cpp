// SPDX-License-Identifier: Apache-2.0
// A vCPU that is reset runs again, whatever KVM had it wait for.
#include <sys/ioctl.h>
#include <unistd.h>

#include <atomic>
#include <optional>
#include <thread>

#include "tests/kvm/kvm_fixture.h"
#include "vmm/kick_signal.h"
#include "vmm/kvm_vcpu_state.h"
#include "vmm/userfault.h"

namespace stopvisor::vmm::testing {
namespace {

constexpr uint64_t kTables = 0x1'0000; // three pages
constexpr uint64_t kCode = 0x2'0000;
constexpr uint64_t kGuarded = 0x20'0000;
constexpr uint16_t kPort = 0x80;
constexpr int kRounds = 400;

// A vCPU in the middle of a 64-bit guest's user code, where no KVM emulates instructions, with interrupts allowed:
// KVM lets it wait for pages by halting it then. Its thread is the test's.
class Wake : public KvmTest {
protected:
  void SetUp() override {
    KvmTest::SetUp();
    if (IsSkipped())
      return;
    auto watcher = Userfault::open("test");
    if (!watcher)
      GTEST_SKIP() << watcher.error().message();
    watcher_.emplace(*std::move(watcher));
    system_.emplace(*KvmSystem::open());
    memory_.emplace(*GuestMemory::create(4 << 20, MemoryBacking::kAnonymous));
    kvm_.emplace(*KvmVm::create(*system_, 1, *memory_));
    vcpu_.emplace(*KvmVcpu::create(*system_, *kvm_, 0, 1));
    initial_.emplace(*VcpuState::save(*vcpu_, *system_));
    prepare_kick_signal();
    accept_kicks(&vcpu_->run());
    put<uint64_t>(kTables, kTables + 0x1000 + 7);          // present, writable, user
    put<uint64_t>(kTables + 0x1000, kTables + 0x2000 + 7); // the same
    put<uint64_t>(kTables + 0x2000, 0x87);                 // the same, and large: 2 MiB
    put<uint64_t>(kTables + 0x2008, kGuarded + 0x87);
  }
  ~Wake() override { accept_kicks(nullptr); }

  template <class T>
  void put(uint64_t gpa, T value) {
    ASSERT_TRUE(memory_->write(Gpa{gpa}, std::as_bytes(std::span(&value, 1))));
  }
  [[nodiscard]] std::span<std::byte> guarded() const { return memory_->range(Gpa{kGuarded}, kPageBytes); }

  void enter_user_code() const {
    kvm_sregs system{};
    ASSERT_EQ(::ioctl(vcpu_->fd(), KVM_GET_SREGS, &system), 0);
    const auto flat = [](uint16_t selector, uint8_t type, bool code) {
      return kvm_segment{.base = 0,
                         .limit = ~0U,
                         .selector = selector,
                         .type = type,
                         .present = 1,
                         .dpl = 3,
                         .db = static_cast<uint8_t>(code ? 0 : 1),
                         .s = 1,
                         .l = static_cast<uint8_t>(code ? 1 : 0),
                         .g = 1,
                         .avl = 0,
                         .unusable = 0,
                         .padding = 0};
    };
    system.cs = flat(0x33, 0xb, true);
    system.ds = system.es = system.fs = system.gs = system.ss = flat(0x2b, 0x3, false);
    system.tr = {};
    system.tr.limit = 0x67;
    system.tr.type = 0xb;
    system.tr.present = 1;
    system.cr0 = 0x8000'0011;
    system.cr3 = kTables;
    system.cr4 = 0x20;
    system.efer = 0x500;
    ASSERT_EQ(::ioctl(vcpu_->fd(), KVM_SET_SREGS, &system), 0);
    kvm_regs general{};
    general.rip = kCode;
    general.rdi = kGuarded;
    general.rdx = kPort;
    general.rflags = 0x3202; // IOPL 3, interrupts allowed
    ASSERT_EQ(::ioctl(vcpu_->fd(), KVM_SET_REGS, &general), 0);
  }
  // RETURNS: how KVM_RUN ends.
  int run() const {
    vcpu_->set_immediate_exit(false);
    return vcpu_->enter();
  }

  std::optional<Userfault> watcher_;
  std::optional<KvmSystem> system_;
  std::optional<GuestMemory> memory_;
  std::optional<KvmVm> kvm_;
  std::optional<KvmVcpu> vcpu_;
  std::optional<VcpuState> initial_;
};

// It is kicked at all moments from its fault to its halt, and all that would end that halt is forgotten. Where it
// stays in it, this hangs.
TEST_F(Wake, OfOneThatWaitsForAPageLetsItRunAgain) {
  std::atomic<int> round{-1};
  const pid_t self = ::gettid();
  const std::jthread kicker([&](const std::stop_token& stop) {
    for (int next = 0; next < kRounds; ++next) {
      while (round.load(std::memory_order_acquire) != next)
        if (stop.stop_requested())
          return;
      for (volatile int delay = next * 40; delay > 0;)
        delay = delay - 1;
      send_kick(self);
    }
  });
  for (int next = 0; next < kRounds; ++next) {
    put<std::array<uint8_t, 6>>(kCode,
                                {0xc6, 0x07, 0x01, 0xee, 0xeb, 0xfe}); // movb $1, (%rdi); out %al, %dx; jmp .
    put<uint8_t>(kGuarded, 0);
    ASSERT_EQ(watcher_->watch(guarded()), 0);
    ASSERT_EQ(watcher_->protect(guarded()), 0);
    ASSERT_NO_FATAL_FAILURE(enter_user_code());
    vcpu_->set_immediate_exit(false);
    round.store(next, std::memory_order_release);
    ASSERT_EQ(vcpu_->enter(), EINTR);
    watcher_->unwatch(guarded());
    const auto restored = initial_->restore(*vcpu_);
    ASSERT_TRUE(restored.has_value()) << restored.error().message();
    ASSERT_NO_FATAL_FAILURE(enter_user_code());
    ASSERT_EQ(run(), 0);
    EXPECT_EQ(vcpu_->run().exit_reason, uint32_t{KVM_EXIT_IO});
  }
}

} // namespace
} // namespace stopvisor::vmm::testing
