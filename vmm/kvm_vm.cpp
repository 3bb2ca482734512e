// SPDX-License-Identifier: Apache-2.0
#include "vmm/kvm_vm.h"

#include <sys/ioctl.h>
#include <time.h>

#include <cerrno>
#include <system_error>
#include <thread>
#include <utility>

namespace stopvisor::vmm {
namespace {

// Three pages for the TSS and one for page tables that VT-x needs to run real mode: KVM API, 4.36 and 4.43.
// They lie in the hole, away from RAM, the I/O APIC (0xfec00000) and the local APIC (0xfee00000).
constexpr uint64_t kIdentityMapGpa = 0xfeff'c000;
constexpr uint64_t kTssGpa = 0xfeff'd000;

// From this many vCPUs on APIC ids need more than the 8 bits of xAPIC (255 is the broadcast id).
constexpr uint32_t kFirstWideApicId = 255;

constexpr uint32_t kClockRealtime = 4; // KVM_CLOCK_REALTIME, since 5.16

Error ioctl_failed(const char* name) {
  return system_error("start VM", name, errno);
}

} // namespace

struct KvmVm::PitMaker {
  int error = 0; // errno; the thread's until it is joined
  std::jthread thread;
};

KvmVm::KvmVm(UniqueFd fd) noexcept : fd_(std::move(fd)) {}
KvmVm::KvmVm() = default;
KvmVm::~KvmVm() = default;
KvmVm::KvmVm(KvmVm&&) noexcept = default;
KvmVm& KvmVm::operator=(KvmVm&&) noexcept = default;

bool KvmVm::has_pit(const KvmSystem& system) noexcept {
  return system.capability(KVM_CAP_PIT2) != 0 && system.capability(KVM_CAP_PIT_STATE2) != 0;
}

std::expected<KvmVm, Error> KvmVm::create(const KvmSystem& system, uint32_t cpus, const GuestMemory& memory) {
  auto fd = system.create_vm();
  if (!fd)
    return std::unexpected(fd.error());
  KvmVm vm(std::move(*fd));
  // Memory first. A memory slot waits until no reader of the VM's tables is left (SRCU), at once where nobody has
  // asked for that yet. Each controller on a bus asks for it and does not wait; who comes next waits for both: 4 to
  // 16 ms.
  if (auto added = vm.add_memory(memory); !added)
    return std::unexpected(added.error());
  if (auto made = vm.create_controllers(system, cpus); !made)
    return std::unexpected(made.error());
  auto initial = vm.controllers();
  if (!initial)
    return std::unexpected(std::move(initial.error()));
  vm.initial_ = *initial;
  vm.has_pit_ = has_pit(system);
  return vm;
}

std::expected<void, Error> KvmVm::create_controllers(const KvmSystem& system, uint32_t cpus) {
  uint64_t identity_map = kIdentityMapGpa;
  if (system.capability(KVM_CAP_SET_IDENTITY_MAP_ADDR) != 0 &&
      ::ioctl(fd_.get(), KVM_SET_IDENTITY_MAP_ADDR, &identity_map) != 0)
    return std::unexpected(ioctl_failed("KVM_SET_IDENTITY_MAP_ADDR"));
  if (system.capability(KVM_CAP_SET_TSS_ADDR) != 0 && ::ioctl(fd_.get(), KVM_SET_TSS_ADDR, kTssGpa) != 0)
    return std::unexpected(ioctl_failed("KVM_SET_TSS_ADDR"));
  if (::ioctl(fd_.get(), KVM_CREATE_IRQCHIP, 0) != 0)
    return std::unexpected(ioctl_failed("KVM_CREATE_IRQCHIP"));
  if (cpus >= kFirstWideApicId) {
    kvm_enable_cap wide{};
    wide.cap = KVM_CAP_X2APIC_API;
    wide.args[0] = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
    if (::ioctl(fd_.get(), KVM_ENABLE_CAP, &wide) != 0)
      return std::unexpected(ioctl_failed("KVM_CAP_X2APIC_API"));
  }
  return {};
}

std::expected<void, Error> KvmVm::begin_pit() {
  if (!has_pit_)
    return {};
  pit_maker_ = std::make_unique<PitMaker>();
  try {
    pit_maker_->thread = std::jthread([fd = fd_.get(), maker = pit_maker_.get()] {
      kvm_pit_config pit{};
      pit.flags = KVM_PIT_SPEAKER_DUMMY; // port 0x61, whose bits guests calibrate their TSC with
      if (::ioctl(fd, KVM_CREATE_PIT2, &pit) != 0)
        maker->error = errno;
    });
  } catch (const std::system_error& error) {
    return std::unexpected(system_error("start VM", "KVM_CREATE_PIT2", error.code().value()));
  }
  return {};
}

std::expected<void, Error> KvmVm::await_pit() {
  if (!pit_maker_)
    return {};
  if (pit_maker_->thread.joinable())
    pit_maker_->thread.join();
  if (pit_maker_->error != 0) // also of who asks again
    return std::unexpected(system_error("start VM", "KVM_CREATE_PIT2", pit_maker_->error));
  pit_maker_.reset();
  auto initial = pit();
  if (!initial)
    return std::unexpected(std::move(initial.error()));
  initial_.pit = *initial;
  return {};
}

std::expected<void, Error> KvmVm::add_memory(const GuestMemory& memory) const {
  uint32_t number = 0;
  for (const MemorySlot& slot : memory.slots())
    if (auto set = log_writes("start VM", number++, slot, false); !set)
      return set;
  return {};
}

// Says what the slot is, the first time and whenever its flags change.
std::expected<void, Error> KvmVm::log_writes(const std::string& operation, uint32_t number, const MemorySlot& slot,
                                             bool on) const {
  kvm_userspace_memory_region region{};
  region.slot = number;
  region.flags = on ? KVM_MEM_LOG_DIRTY_PAGES : 0;
  region.guest_phys_addr = slot.base.value;
  region.memory_size = slot.size_bytes;
  region.userspace_addr = reinterpret_cast<uintptr_t>(slot.host);
  if (::ioctl(fd_.get(), KVM_SET_USER_MEMORY_REGION, &region) != 0)
    return std::unexpected(system_error(operation, "KVM_SET_USER_MEMORY_REGION", errno));
  return {};
}

std::expected<void, Error> KvmVm::set_dirty_log_flags(const std::string& operation, uint64_t flags) const {
  kvm_enable_cap by_hand{};
  by_hand.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;
  by_hand.args[0] = flags;
  if (::ioctl(fd_.get(), KVM_ENABLE_CAP, &by_hand) != 0)
    return std::unexpected(system_error(operation, "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", errno));
  return {};
}

std::expected<void, Error> KvmVm::dirty_bitmap(const std::string& operation, uint32_t number,
                                               std::span<uint64_t> bits) const {
  kvm_dirty_log log{};
  log.slot = number;
  log.dirty_bitmap = bits.data();
  if (::ioctl(fd_.get(), KVM_GET_DIRTY_LOG, &log) != 0)
    return std::unexpected(system_error(operation, "KVM_GET_DIRTY_LOG", errno));
  return {};
}

std::expected<void, Error> KvmVm::clear_dirty(const std::string& operation, uint32_t number, uint64_t first,
                                              uint64_t pages, std::span<const uint64_t> bits) const {
  kvm_clear_dirty_log log{};
  log.slot = number;
  log.first_page = first;
  log.num_pages = static_cast<uint32_t>(pages);
  log.dirty_bitmap = const_cast<uint64_t*>(bits.data()); // KVM reads it: 4.117
  if (::ioctl(fd_.get(), KVM_CLEAR_DIRTY_LOG, &log) != 0)
    return std::unexpected(system_error(operation, "KVM_CLEAR_DIRTY_LOG", errno));
  return {};
}

std::expected<std::optional<kvm_pit_state2>, Error> KvmVm::pit() const {
  std::optional<kvm_pit_state2> state;
  if (has_pit_ && ::ioctl(fd_.get(), KVM_GET_PIT2, &state.emplace()) != 0)
    return std::unexpected(ioctl_failed("KVM_GET_PIT2"));
  return state;
}

std::expected<ControllerValues, Error> KvmVm::controllers() const {
  ControllerValues values;
  for (uint32_t chip = 0; chip < values.irqchips.size(); ++chip) {
    values.irqchips[chip].chip_id = chip;
    if (::ioctl(fd_.get(), KVM_GET_IRQCHIP, &values.irqchips[chip]) != 0)
      return std::unexpected(ioctl_failed("KVM_GET_IRQCHIP"));
  }
  auto timer = pit();
  if (!timer)
    return std::unexpected(std::move(timer.error()));
  values.pit = *timer;
  return values;
}

// KVM tells the first PIC of what is pending at the second whenever it sets either of them, so the second comes
// first: one set after the other would leave an interrupt there that nobody has, and a kernel that starts anew
// takes it as vector 7, a device-not-available exception.
std::expected<void, Error> KvmVm::set_irqchips(const ControllerValues& values) const {
  static_assert(KVM_IRQCHIP_PIC_MASTER < KVM_IRQCHIP_PIC_SLAVE);
  for (size_t chip = values.irqchips.size(); chip-- > 0;) {
    kvm_irqchip state = values.irqchips[chip];
    if (::ioctl(fd_.get(), KVM_SET_IRQCHIP, &state) != 0)
      return std::unexpected(ioctl_failed("KVM_SET_IRQCHIP"));
  }
  return {};
}

std::expected<void, Error> KvmVm::set_pit(const ControllerValues& values) const {
  if (values.pit.has_value() != has_pit())
    return std::unexpected(
        Error{"restore", "the PIT", has_pit() ? "it is missing" : "this KVM has none", Status::kFailed});
  if (!values.pit)
    return {};
  kvm_pit_state2 pit = *values.pit;
  if (::ioctl(fd_.get(), KVM_SET_PIT2, &pit) != 0)
    return std::unexpected(ioctl_failed("KVM_SET_PIT2"));
  return {};
}

std::expected<ClockValues, Error> KvmVm::clock() const {
  kvm_clock_data data{};
  if (::ioctl(fd_.get(), KVM_GET_CLOCK, &data) != 0)
    return std::unexpected(ioctl_failed("KVM_GET_CLOCK"));
  ClockValues values{data.clock, data.realtime};
  if ((data.flags & kClockRealtime) == 0) {
    timespec now{};
    (void)::clock_gettime(CLOCK_REALTIME, &now); // there always is one
    values.realtime_ns = static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
  }
  return values;
}

std::expected<void, Error> KvmVm::set_clock(const ClockValues& values) const {
  kvm_clock_data data{};
  data.clock = values.kvmclock_ns;
  if (::ioctl(fd_.get(), KVM_SET_CLOCK, &data) != 0)
    return std::unexpected(ioctl_failed("KVM_SET_CLOCK"));
  return {};
}

// Who raises interrupts before who passes them on: the timer, then the PICs and the I/O APIC.
std::expected<void, Error> KvmVm::reset() const {
  if (auto done = set_pit(initial_); !done)
    return done;
  return set_irqchips(initial_);
}

std::expected<UniqueFd, Error> KvmVm::create_vcpu(uint32_t cpu) const {
  const int fd = ::ioctl(fd_.get(), KVM_CREATE_VCPU, static_cast<unsigned long>(cpu));
  if (fd < 0)
    return std::unexpected(ioctl_failed("KVM_CREATE_VCPU"));
  return UniqueFd(fd);
}

std::expected<void, Error> KvmVm::add_irqfd(uint32_t gsi, int event) const {
  kvm_irqfd irqfd{};
  irqfd.fd = static_cast<uint32_t>(event);
  irqfd.gsi = gsi;
  if (::ioctl(fd_.get(), KVM_IRQFD, &irqfd) != 0)
    return std::unexpected(ioctl_failed("KVM_IRQFD"));
  return {};
}

std::expected<void, Error> KvmVm::add_ioeventfd(Gpa address, uint32_t bytes, int event) const {
  kvm_ioeventfd ioeventfd{};
  ioeventfd.addr = address.value;
  ioeventfd.len = bytes;
  ioeventfd.fd = event;
  if (::ioctl(fd_.get(), KVM_IOEVENTFD, &ioeventfd) != 0)
    return std::unexpected(ioctl_failed("KVM_IOEVENTFD"));
  return {};
}

void KvmVm::set_irq_line(uint32_t gsi, bool level) const noexcept {
  kvm_irq_level line{};
  line.irq = gsi;
  line.level = level ? 1 : 0;
  // It fails for a number that no controller has, which our devices do not use.
  (void)::ioctl(fd_.get(), KVM_IRQ_LINE, &line);
}

} // namespace stopvisor::vmm
