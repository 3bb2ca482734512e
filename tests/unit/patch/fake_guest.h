// SPDX-License-Identifier: Apache-2.0
// A guest for the patch engine that is nothing but memory, page tables and registers, and fails where a test says
// so.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "tools/patch/engine.h"
#include "vmm/guest_memory.h"
#include "vmm/units.h"

namespace stopvisor::patch::testing {

class FakeGuest final : public Guest {
public:
  static constexpr uint64_t kMemoryBytes = 8 << 20;
  static constexpr uint64_t kTables = 0x10'0000;
  // Virtual addresses from here on are mapped to the same guest physical ones, page by page; further up nothing is.
  static constexpr uint64_t kMapped = 0x20'0000;
  static constexpr uint64_t kMappedEnd = 0x40'0000;

  // `backing`: with kMemfd the memory outlives a process that shares it.
  explicit FakeGuest(uint32_t cpus = 2, vmm::MemoryBacking backing = vmm::MemoryBacking::kAnonymous)
      : memory_(*vmm::GuestMemory::create(kMemoryBytes, backing)), registers_(cpus) {
    put<uint64_t>(kTables, (kTables + 0x1000) | 7);
    put<uint64_t>(kTables + 0x1000, (kTables + 0x2000) | 7);
    put<uint64_t>(kTables + 0x2000 + 8, (kTables + 0x3000) | 7); // 2 MiB to 4 MiB
    for (uint64_t page = kMapped; page < kMappedEnd; page += 0x1000)
      map(page, page | 7);
    for (vmm::Registers& registers : registers_) {
      registers.cr0 = 0x8000'0001;
      registers.cr3 = kTables;
      registers.cr4 = 0x20;
      registers.efer = 0xd00; // LME, LMA, NXE
      registers.cs.long_mode = true;
      registers.cs.selector = 0x10;
      registers.rip = 0x3f'0000;
      registers.general[4] = 0x3e'0000; // RSP
    }
  }

  // The page table entry of a page.
  void map(uint64_t page, uint64_t entry) {
    put<uint64_t>(kTables + 0x3000 + (page - kMapped) / 0x1000 * 8, entry);
  }
  template <typename T>
  void put(uint64_t gpa, T value) {
    ASSERT_TRUE(memory_.write(vmm::Gpa{gpa}, std::as_bytes(std::span(&value, 1))));
  }
  void put_bytes(uint64_t gpa, const Bytes& bytes) { ASSERT_TRUE(memory_.write(vmm::Gpa{gpa}, bytes)); }
  [[nodiscard]] Bytes bytes_at(uint64_t gpa, size_t count) const {
    Bytes bytes(count);
    EXPECT_TRUE(memory_.read(vmm::Gpa{gpa}, bytes));
    return bytes;
  }
  [[nodiscard]] Bytes everything() const { return bytes_at(0, kMemoryBytes); }
  [[nodiscard]] vmm::Registers& vcpu(uint32_t cpu) { return registers_[cpu]; }

  // The write of this number (from 1) and all that follow fail; 0: none does.
  size_t fail_from_write = 0;
  size_t fail_to_write = SIZE_MAX; // up to this one
  size_t lose_write = 0;           // this one says that it wrote, and did not
  std::function<void()> before_write;
  size_t writes = 0;
  size_t stops = 0;
  uint64_t reset_count = 0;
  std::optional<vmm::Error> stop_error;

  std::expected<void, vmm::Error> under_stop(const Wanted& wanted, Body body) override {
    if (stop_error)
      return std::unexpected(*stop_error);
    if (wanted.kernel)
      return std::unexpected(vmm::Error{wanted.operation, "", "no Linux kernel was found", vmm::Status::kRefused});
    return body({nullptr, ++stops});
  }
  int expectations = 0;
  void expect_registers(bool expected) noexcept override { expectations += expected ? 1 : -1; }
  std::optional<StopTimes> times_of(uint64_t sequence) override { return StopTimes{sequence, 1, 2, 3}; }
  const vmm::GuestMemory& memory() const noexcept override { return memory_; }
  uint64_t resets() const noexcept override { return reset_count; }
  uint32_t cpus() const noexcept override { return static_cast<uint32_t>(registers_.size()); }
  std::expected<vmm::Registers, vmm::Error> registers(uint32_t cpu) const override { return registers_[cpu]; }
  bool waits_to_start(uint32_t cpu) const override { return registers_[cpu].waiting; }
  bool write(vmm::Gpa gpa, std::span<std::byte> to, std::span<const std::byte> from) noexcept override {
    ++writes;
    if (before_write)
      before_write();
    if (fail_from_write != 0 && writes >= fail_from_write && writes <= fail_to_write)
      return false;
    return writes == lose_write || memory_.write(gpa, from.first(to.size()));
  }

private:
  vmm::GuestMemory memory_;
  std::vector<vmm::Registers> registers_;
};

// Steps in where the test says.
class FakeHooks final : public Hooks {
public:
  std::function<void(Step)> act;
  void at(Step step) override {
    if (act)
      act(step);
  }
};

// Time that passes when somebody waits.
class FakeClock final : public Clock {
public:
  SteadyTime time = std::chrono::steady_clock::now();
  std::function<void()> on_wait;
  int waits = 0;
  [[nodiscard]] SteadyTime now() const override { return time; }
  void wait(std::chrono::nanoseconds duration) override {
    ++waits;
    time += duration;
    if (on_wait)
      on_wait();
  }
};

inline Bytes hex(std::initializer_list<int> values) {
  Bytes bytes;
  for (const int value : values)
    bytes.push_back(std::byte(value));
  return bytes;
}

inline Write write_of(const std::string& at, SiteKind kind, Bytes expect, Bytes bytes) {
  Write write;
  write.at = *parse_place(at);
  write.kind = kind;
  write.expect = std::move(expect);
  write.operation.bytes = std::move(bytes);
  return write;
}

inline Manifest manifest_of(std::string name, std::vector<Write> writes) {
  Manifest manifest;
  manifest.name = std::move(name);
  manifest.version = "1";
  manifest.writes = std::move(writes);
  return manifest;
}

} // namespace stopvisor::patch::testing
