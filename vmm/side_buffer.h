// SPDX-License-Identifier: Apache-2.0
// A bounded store of equal pieces of memory, which takes as much of the host's memory as was used of it at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <string_view>
#include <vector>

#include "vmm/error.h"

namespace stopvisor::vmm {

// CONTEXT: one thread at a time (its user's lock); nothing blocks but for the host's memory.
class SideBuffer {
public:
  using Slot = uint32_t;
  static constexpr Slot kNone = ~Slot{0};

  // Address space for `bytes`, rounded up to whole slots; at least one. RETURNS: kFailed where the host refuses.
  [[nodiscard]] static std::expected<SideBuffer, Error> create(std::string_view operation, uint64_t bytes,
                                                               uint64_t slot_bytes);
  ~SideBuffer();
  SideBuffer(SideBuffer&&) noexcept;
  SideBuffer& operator=(SideBuffer&&) = delete;

  [[nodiscard]] Slot take() noexcept; // kNone where all are taken
  void give_back(Slot slot) noexcept;
  [[nodiscard]] std::byte* at(Slot slot) const noexcept { return mapping_ + slot * slot_bytes_; }
  [[nodiscard]] uint64_t peak_bytes() const noexcept { return fresh_ * slot_bytes_; }

private:
  SideBuffer() = default;

  std::byte* mapping_ = nullptr;
  uint64_t slot_bytes_ = 0;
  uint64_t slots_ = 0;
  uint64_t fresh_ = 0;       // the first that was never taken
  std::vector<Slot> unused_; // of those before it; reserved for all, so that giving back cannot fail
};

} // namespace stopvisor::vmm
