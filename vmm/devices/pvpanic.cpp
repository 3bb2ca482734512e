// SPDX-License-Identifier: Apache-2.0
#include "vmm/devices/pvpanic.h"

#include <algorithm>
#include <utility>

namespace stopvisor::vmm {
namespace {

constexpr uint8_t kPanicked = static_cast<uint8_t>(PanicEvent::kPanicked);
constexpr uint8_t kCrashLoaded = static_cast<uint8_t>(PanicEvent::kCrashLoaded);

} // namespace

PvPanic::PvPanic(std::function<void(PanicEvent)> tell) : tell_(std::move(tell)) {}

void PvPanic::read(uint64_t /*offset*/, std::span<std::byte> data) noexcept {
  const bool is_register = data.size() == 1;
  std::fill(data.begin(), data.end(), std::byte{is_register ? uint8_t{kPanicked | kCrashLoaded} : uint8_t{0xff}});
}

void PvPanic::write(uint64_t /*offset*/, std::span<const std::byte> data) noexcept {
  if (data.size() != 1)
    return;
  const auto events = std::to_integer<uint8_t>(data[0]);
  if ((events & (kPanicked | kCrashLoaded)) == 0)
    return;
  // Once for each life: a guest that writes it in a loop must not fill the log. relaxed: a flag by itself.
  if (panicked_.exchange(true, std::memory_order_relaxed))
    return;
  panics_.fetch_add(1, std::memory_order_relaxed); // a counter by itself
  if (tell_)
    tell_((events & kCrashLoaded) != 0 ? PanicEvent::kCrashLoaded : PanicEvent::kPanicked);
}

void PvPanic::save_state(StateWriter& to) const {
  to.put(panicked());
}

void PvPanic::restore_state(StateReader& from) {
  panicked_.store(from.get_flag(), std::memory_order_relaxed); // a flag by itself
}

void PvPanic::reset() noexcept {
  panicked_.store(false, std::memory_order_relaxed); // a flag by itself
}

} // namespace stopvisor::vmm
