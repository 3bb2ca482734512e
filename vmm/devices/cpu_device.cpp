// SPDX-License-Identifier: Apache-2.0
#include "vmm/devices/cpu_device.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "guest/probe_abi.h"

namespace stopvisor::vmm {
namespace {

constexpr uint64_t kStride = 4;
static_assert(probe::kCpuPossiblePort == probe::kCpuSignaturePort + kStride);

void put_all_ones(std::span<std::byte> data) {
  std::fill(data.begin(), data.end(), std::byte{0xff});
}

} // namespace

CpuDevice::CpuDevice(uint32_t possible, std::function<void()> pulse_interrupt)
    : pulse_interrupt_(std::move(pulse_interrupt)), entries_(possible), identity_(possible) {}

std::expected<void, Error> CpuDevice::attach_to(Bus& ports) {
  if (auto done = ports.attach(probe::kCpuSignaturePort, 2 * kStride, identity_); !done)
    return done;
  return ports.attach(probe::kCpuPortBase, kStride * entries_.size(), registers_);
}

void CpuDevice::add(uint32_t cpu, bool tells) {
  {
    const std::lock_guard guard(lock_);
    entries_[cpu] = {.present = true, .wanted = true};
  }
  if (tells)
    pulse_interrupt_();
}

void CpuDevice::set_wanted(uint32_t cpu, bool wanted) {
  {
    const std::lock_guard guard(lock_);
    entries_[cpu].wanted = wanted;
    entries_[cpu].gone = false;
  }
  pulse_interrupt_(); // after the register says what it tells of
}

bool CpuDevice::wanted(uint32_t cpu) const {
  const std::lock_guard guard(lock_);
  return entries_[cpu].wanted;
}

CpuDevice::Answer CpuDevice::await_gone(uint32_t cpu, std::chrono::steady_clock::time_point deadline) {
  std::unique_lock guard(lock_);
  changed_.wait_until(guard, deadline, [&] { return entries_[cpu].gone || closed_; });
  if (closed_)
    return Answer::kClosed;
  return entries_[cpu].gone ? Answer::kGone : Answer::kNone;
}

void CpuDevice::close() noexcept {
  {
    const std::lock_guard guard(lock_);
    closed_ = true;
  }
  changed_.notify_all();
}

// Any vCPU may say it of any other: the one that is gone may well be past saying it. Of one that is absent, wanted,
// or gone already it means nothing.
void CpuDevice::note_gone(uint32_t cpu) noexcept {
  {
    const std::lock_guard guard(lock_);
    Entry& entry = entries_[cpu];
    if (!entry.present || entry.wanted)
      return;
    entry.gone = true;
  }
  changed_.notify_all();
}

// The guest begins anew, and finds those that are not wanted so: it has nothing on them to give up.
void CpuDevice::reset() noexcept {
  {
    const std::lock_guard guard(lock_);
    for (Entry& entry : entries_)
      entry.gone = entry.present && !entry.wanted;
  }
  changed_.notify_all();
}

void CpuDevice::save_state(StateWriter& to) const {
  const std::lock_guard guard(lock_);
  to.put(static_cast<uint32_t>(entries_.size()));
  for (const Entry& entry : entries_)
    put_fields(to, entry.present, entry.wanted, entry.gone);
}

void CpuDevice::restore_state(StateReader& from) {
  const std::lock_guard guard(lock_);
  if (from.get<uint32_t>() != entries_.size())
    return from.refuse("another number of possible vCPUs than this machine's");
  for (Entry& entry : entries_) {
    const bool exists = entry.present;
    get_fields(from, entry.present, entry.wanted, entry.gone);
    from.refuse_unless(entry.present == exists, "other vCPUs than this machine's");
    from.refuse_unless(entry.present || (!entry.wanted && !entry.gone), "a vCPU that is wanted and not there");
  }
}

void CpuDevice::Identity::read(uint64_t offset, std::span<std::byte> data) noexcept {
  const uint32_t value = offset == 0 ? probe::kCpuSignature : possible_;
  if (offset % kStride != 0 || data.size() != sizeof value)
    return put_all_ones(data);
  std::memcpy(data.data(), &value, sizeof value);
}

void CpuDevice::Identity::write(uint64_t /*offset*/, std::span<const std::byte> /*data*/) noexcept {}

void CpuDevice::Registers::read(uint64_t offset, std::span<std::byte> data) noexcept {
  uint32_t value = 0;
  if (offset % kStride != 0 || data.size() != sizeof value)
    return put_all_ones(data);
  {
    const std::lock_guard guard(device_.lock_);
    const Entry& entry = device_.entries_[offset / kStride];
    value = (entry.present ? probe::kCpuPresent : 0) | (entry.wanted ? probe::kCpuWanted : 0);
  }
  std::memcpy(data.data(), &value, sizeof value);
}

void CpuDevice::Registers::write(uint64_t offset, std::span<const std::byte> data) noexcept {
  uint32_t value = 0;
  if (offset % kStride != 0 || data.size() != sizeof value)
    return;
  std::memcpy(&value, data.data(), sizeof value);
  if (value == probe::kCpuGone)
    device_.note_gone(static_cast<uint32_t>(offset / kStride));
}

} // namespace stopvisor::vmm
