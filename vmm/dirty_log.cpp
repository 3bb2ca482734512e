// SPDX-License-Identifier: Apache-2.0
#include "vmm/dirty_log.h"

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "vmm/kvm_system.h"
#include "vmm/kvm_vm.h"
#include "vmm/written_pages.h"

namespace stopvisor::vmm {
namespace {

// 64 MiB: how much is protected while KVM holds the lock that a vCPU needs for its page faults.
constexpr uint64_t kPieceWords = 256;

uint64_t flags_of(DirtyLogWay way) {
  switch (way) {
  case DirtyLogWay::kAtOnce:
    break;
  case DirtyLogWay::kWhenAsked:
    return KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE;
  case DirtyLogWay::kFromStart:
    return KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
  }
  return 0;
}

class KvmDirtyLog final : public DirtyLog {
public:
  KvmDirtyLog(std::string operation, const DirtyLogParts& of, DirtyLogWay way)
      : operation_(std::move(operation)), of_(of), way_(way), found_(of.memory.slots()), again_(of.memory.slots()) {
  }
  ~KvmDirtyLog() override;
  KvmDirtyLog(const KvmDirtyLog&) = delete;
  KvmDirtyLog& operator=(const KvmDirtyLog&) = delete;

  [[nodiscard]] std::expected<void, Error> begin();
  [[nodiscard]] std::expected<void, Error> take(DirtyPages& into) override;
  [[nodiscard]] std::expected<void, Error> read(DirtyPages& into) override;

private:
  [[nodiscard]] std::expected<void, Error> look();
  [[nodiscard]] std::expected<void, Error> notice_next_write(uint32_t slot);

  const std::string operation_;
  const DirtyLogParts of_;
  const DirtyLogWay way_;
  uint32_t on_ = 0;  // slots that are logged, the first ones
  DirtyPages found_; // what KVM had at the last look
  DirtyPages again_; // what was told by read(), and KVM and WrittenPages have forgotten
};

KvmDirtyLog::~KvmDirtyLog() {
  // KVM needs nothing that it could lack to take the flag away.
  for (uint32_t slot = 0; slot < on_; ++slot) [[maybe_unused]]
    const auto off = of_.kvm.log_writes(operation_, slot, of_.memory.slots()[slot], false);
  of_.taken.store(false, std::memory_order_release); // pairs with begin_dirty_log()
}

std::expected<void, Error> KvmDirtyLog::begin() {
  if (way_ != DirtyLogWay::kAtOnce)
    if (auto done = of_.kvm.set_dirty_log_flags(operation_, flags_of(way_)); !done)
      return done;
  for (const MemorySlot& slot : of_.memory.slots()) {
    if (auto done = of_.kvm.log_writes(operation_, on_, slot, true); !done)
      return done;
    ++on_;
  }
  // What was written up to here need not be told. KVM may have all bits set: they are cleared by the same means.
  DirtyPages before(of_.memory.slots());
  return take(before);
}

// What KVM has, into found_. Where it forgets by that, it is kept in again_.
std::expected<void, Error> KvmDirtyLog::look() {
  for (uint32_t slot = 0; slot < on_; ++slot)
    if (auto done = of_.kvm.dirty_bitmap(operation_, slot, found_.slots()[slot].words); !done)
      return done;
  if (way_ == DirtyLogWay::kAtOnce)
    again_.add(found_);
  of_.written.take(again_);
  return {};
}

std::expected<void, Error> KvmDirtyLog::read(DirtyPages& into) {
  if (auto looked = look(); !looked)
    return looked;
  into.add(found_);
  into.add(again_);
  return {};
}

std::expected<void, Error> KvmDirtyLog::take(DirtyPages& into) {
  if (auto done = read(into); !done)
    return done;
  again_.clear();
  if (way_ == DirtyLogWay::kAtOnce)
    return {};
  for (uint32_t slot = 0; slot < on_; ++slot)
    if (auto done = notice_next_write(slot); !done)
      return done;
  return {};
}

// A write to a page that is in found_ from here on is in the next look.
std::expected<void, Error> KvmDirtyLog::notice_next_write(uint32_t slot) {
  const DirtyPages::Slot& found = found_.slots()[slot];
  for (uint64_t word = 0; word < found.words.size(); word += kPieceWords) {
    const auto piece =
        std::span(found.words).subspan(word, std::min<uint64_t>(kPieceWords, found.words.size() - word));
    if (std::ranges::all_of(piece, [](uint64_t bits) { return bits == 0; }))
      continue;
    const uint64_t first = word * DirtyPages::kWordPages;
    const uint64_t pages = std::min<uint64_t>(piece.size() * DirtyPages::kWordPages, found.pages - first);
    if (auto done = of_.kvm.clear_dirty(operation_, slot, first, pages, piece); !done)
      return done;
  }
  return {};
}

} // namespace

DirtyLogWay best_dirty_log_way(const KvmSystem& system) noexcept {
  const int flags = system.capability(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
  if ((flags & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE) == 0)
    return DirtyLogWay::kAtOnce;
  return (flags & KVM_DIRTY_LOG_INITIALLY_SET) == 0 ? DirtyLogWay::kWhenAsked : DirtyLogWay::kFromStart;
}

std::expected<std::unique_ptr<DirtyLog>, Error> begin_dirty_log(const std::string& operation,
                                                                const DirtyLogParts& of, DirtyLogWay way) {
  if (of.taken.exchange(true, std::memory_order_acquire)) // pairs with ~KvmDirtyLog()
    return std::unexpected(
        Error{operation, "dirty log", "somebody follows the writes to this VM's memory already", Status::kBusy});
  auto log = std::make_unique<KvmDirtyLog>(operation, of, way); // gives it back, come what may
  if (auto begun = log->begin(); !begun)
    return std::unexpected(std::move(begun.error()));
  return log;
}

} // namespace stopvisor::vmm
