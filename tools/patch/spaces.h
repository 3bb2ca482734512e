// SPDX-License-Identifier: Apache-2.0
// The address spaces of one moment, and the memory behind their addresses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <expected>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tools/patch/guest.h"
#include "tools/patch/place.h"
#include "vmm/page_walk.h"

namespace stopvisor::patch {

// A place that was looked up: an address, and whose page tables it goes by.
struct Location {
  uint64_t address = 0;
  const vmm::Registers* paging = nullptr; // null: a physical address

  [[nodiscard]] std::string text() const;
};

// Consecutive bytes of guest memory.
struct Piece {
  vmm::Gpa gpa;
  std::span<std::byte> host;
};

struct Pieces {
  std::vector<Piece> list; // in order
  bool executable = true;  // all of it, by the guest's own tables
  bool writable = true;
};

// Reads each vCPU's registers once. CONTEXT: made and asked under a stop; afterwards what was read can be used on.
class Spaces {
public:
  // Both must outlive the object; `kernel` may be null.
  Spaces(const Guest& guest, const vmm::LinuxKernel* kernel);

  // RETURNS: why not, in words.
  [[nodiscard]] std::expected<Location, std::string> locate(const Place& place);
  // Null where there is no such vCPU or KVM refuses.
  [[nodiscard]] const vmm::Registers* vcpu(uint32_t cpu);
  [[nodiscard]] uint32_t vcpus() const noexcept { return static_cast<uint32_t>(vcpus_.size()); }
  // Reads these, where there are such vCPUs. No more is read from here on: the object may be asked without a stop.
  void read(const std::set<uint64_t>& cpus);

private:
  [[nodiscard]] std::expected<Location, std::string> in_tables(uint64_t address, uint64_t cr3);
  [[nodiscard]] std::expected<Location, std::string> in_process(uint64_t address, uint64_t pid);

  const Guest& guest_;
  const vmm::LinuxKernel* kernel_;
  std::vector<std::optional<vmm::Registers>> vcpus_;
  bool complete_ = false;
  std::deque<vmm::Registers> others_; // of spaces named by CR3, and the kernel's
  const vmm::Registers* kernel_paging_ = nullptr;
  // Of processes that were looked for: the guest's list is walked once for each.
  std::map<uint64_t, std::expected<const vmm::Registers*, std::string>> processes_;
};

// Walks page tables under one stop: what it has walked once it keeps, as nobody changes it meanwhile.
class PieceFinder {
public:
  // `memory` must outlive the object. Makes its room. CONTEXT: before the stop.
  explicit PieceFinder(const vmm::GuestMemory& memory) : memory_(memory), known_(kKnown) {}

  // Fills `pieces` with the memory behind [location, location + length). Allocates nothing that `pieces` has room
  // for. RETURNS: why not, in words; `pieces` is empty then.
  [[nodiscard]] std::expected<void, std::string> find(const Location& location, uint64_t length, Pieces& pieces);

private:
  struct Page {
    const vmm::Registers* paging = nullptr;
    uint64_t number = 0;          // of the virtual page
    vmm::Translation translation; // of its first byte
  };
  static constexpr size_t kKnown = 256;
  [[nodiscard]] std::expected<const Page*, std::string> page_of(uint64_t address, const vmm::Registers& paging);

  const vmm::GuestMemory& memory_;
  std::vector<Page> known_;
};

// Whether the pieces hold these bytes, which are as many.
[[nodiscard]] bool holds(const Pieces& pieces, std::span<const std::byte> bytes) noexcept;
// Copies; `to` and `from` are as long as the pieces together.
void copy_out(const Pieces& from, std::span<std::byte> to) noexcept;
// Reads bytes that need not be mapped. RETURNS: false where some are not.
[[nodiscard]] bool read_at(const Location& location, std::span<std::byte> to,
                           const vmm::GuestMemory& memory) noexcept;

} // namespace stopvisor::patch
