// SPDX-License-Identifier: Apache-2.0
// Guest memory: one mapping of host memory, seen by the guest as one or two slots around the 32-bit hole.
//
// The guest writes to this memory at any time, so whatever is read from it is copied once, then checked,
// then used. A consistent view of more than one word needs a stop.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <vector>

#include "vmm/address.h"
#include "vmm/error.h"
#include "vmm/unique_fd.h"

namespace stopvisor::vmm {

// RAM ends here below 4 GiB; what does not fit goes on at 4 GiB. Devices and the local APIC live between.
inline constexpr uint64_t kHoleStart = 0xc000'0000;
inline constexpr uint64_t kHoleEnd = 0x1'0000'0000;
inline constexpr uint64_t kPageBytes = 4096;

enum class MemoryBacking {
  kAnonymous, // private anonymous memory, transparent huge pages asked for
  kMemfd,     // a shared memfd, so that another process can map it
  kHugetlb,   // a memfd of 2 MiB huge pages from the host's pool
};

struct MemorySlot {
  Gpa base;
  uint64_t size_bytes = 0;
  std::byte* host = nullptr;
};

class GuestMemory {
public:
  // Maps `size_bytes` (a multiple of 4 KiB; of 2 MiB for kHugetlb; not 0). Memory reads as zeros.
  // CONTEXT: any thread. RETURNS: kUsage for a size that is 0 or odd, kFailed where the host refuses.
  [[nodiscard]] static std::expected<GuestMemory, Error> create(uint64_t size_bytes, MemoryBacking backing);
  ~GuestMemory();
  GuestMemory(GuestMemory&&) noexcept;
  GuestMemory& operator=(GuestMemory&&) = delete;

  [[nodiscard]] uint64_t size_bytes() const noexcept { return size_bytes_; }
  [[nodiscard]] MemoryBacking backing() const noexcept { return backing_; }
  [[nodiscard]] std::span<const MemorySlot> slots() const noexcept { return slots_; }

  // The host bytes behind [gpa, gpa + length), which must lie in one slot. An empty span where it does not
  // (or length is 0): the caller names the error, as only it knows the operation.
  // CONTEXT: any thread, does not block. The guest may write the bytes at any time.
  [[nodiscard]] std::span<std::byte> range(Gpa gpa, uint64_t length) const noexcept;

  // Copies out of or into guest memory; false where the range does not lie in one slot, nothing copied then.
  [[nodiscard]] bool read(Gpa gpa, std::span<std::byte> to) const noexcept;
  [[nodiscard]] bool write(Gpa gpa, std::span<const std::byte> from) const noexcept;

  // Gives every page back to the host, so that all memory reads as zeros again. CONTEXT: no vCPU runs (under a
  // stop, or before the first one starts). RETURNS: kFailed where the host refuses.
  [[nodiscard]] std::expected<void, Error> clear() noexcept;

private:
  GuestMemory() = default;
  [[nodiscard]] std::expected<void, Error> map();

  uint64_t size_bytes_ = 0;
  MemoryBacking backing_ = MemoryBacking::kAnonymous;
  std::byte* mapping_ = nullptr;
  UniqueFd fd_; // the memfd, for the two shared backings
  std::vector<MemorySlot> slots_;
};

} // namespace stopvisor::vmm
