// SPDX-License-Identifier: Apache-2.0
// Guest memory: one mapping of host memory, seen by the guest as one or two slots around the 32-bit hole.
//
// The guest writes to this memory at any time, so whatever is read from it is copied once, then checked,
// then used. A consistent view of more than one word needs a stop.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "vmm/address.h"
#include "vmm/error.h"
#include "vmm/unique_fd.h"

namespace stopvisor::vmm {

// RAM ends here below 4 GiB; what does not fit goes on at 4 GiB. Devices and the local APIC live between.
inline constexpr uint64_t kHoleStart = 0xc000'0000;
inline constexpr uint64_t kHoleEnd = 0x1'0000'0000;
inline constexpr uint64_t kPageBytes = 4096;
inline constexpr uint64_t kHugePageBytes = 2 << 20; // of the host's larger pages, and of KVM's

enum class MemoryBacking {
  kAnonymous, // private anonymous memory, transparent huge pages asked for
  kMemfd,     // a shared memfd, so that another process can map it
  kHugetlb,   // a memfd of 2 MiB huge pages from the host's pool
};

// As users write them: "anon", "memfd", "hugetlb".
[[nodiscard]] const char* name_of(MemoryBacking backing) noexcept;
[[nodiscard]] std::optional<MemoryBacking> memory_backing_named(std::string_view name) noexcept;

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

  // Makes the memory a private copy of a file's content, whose pages are shared with whoever maps the file, until
  // they are written: slot n begins at offsets[n], multiples of 4 KiB. The file must be as long, and stay so: who
  // touches what was cut off gets SIGBUS. CONTEXT: before anybody uses the memory. RETURNS: kRefused for another
  // backing than kAnonymous, kFailed where the host refuses; the memory is of no use then.
  [[nodiscard]] std::expected<void, Error> map_file(int fd, std::span<const uint64_t> offsets);
  [[nodiscard]] bool maps_file() const noexcept { return maps_file_; } // false again after clear()

  // Gives every page back to the host, so that all memory reads as zeros again. CONTEXT: no vCPU runs (under a
  // stop, or before the first one starts). RETURNS: kFailed where the host refuses.
  [[nodiscard]] std::expected<void, Error> clear() noexcept;

private:
  GuestMemory() = default;
  [[nodiscard]] std::expected<void, Error> map();
  [[nodiscard]] bool map_anonymous() const noexcept; // in place of what is mapped there

  uint64_t size_bytes_ = 0;
  MemoryBacking backing_ = MemoryBacking::kAnonymous;
  std::byte* mapping_ = nullptr;
  bool maps_file_ = false;
  UniqueFd fd_; // the memfd, for the two shared backings
  std::vector<MemorySlot> slots_;
};

} // namespace stopvisor::vmm
