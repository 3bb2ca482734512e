// SPDX-License-Identifier: Apache-2.0
#include "vmm/page_walk.h"

#include <span>
#include <string>
#include <utility>

#include "vmm/units.h"

namespace stopvisor::vmm {
namespace {

constexpr uint64_t kCr0Paging = 1ULL << 31;
constexpr uint64_t kCr4Pse = 1ULL << 4;
constexpr uint64_t kCr4Pae = 1ULL << 5;
constexpr uint64_t kCr4La57 = 1ULL << 12;
constexpr uint64_t kEferLma = 1ULL << 10;
constexpr uint64_t kEferNxe = 1ULL << 11;

constexpr uint64_t kPresent = 1ULL << 0;
constexpr uint64_t kWritable = 1ULL << 1;
constexpr uint64_t kUser = 1ULL << 2;
constexpr uint64_t kLarge = 1ULL << 7;
constexpr uint64_t kNoExecute = 1ULL << 63;
constexpr uint64_t kAddressBits = 0x000f'ffff'ffff'f000;

// Bits low..high, both included.
constexpr uint64_t bits(unsigned high, unsigned low) {
  return (~0ULL >> (63 - high)) & (~0ULL << low);
}

enum class Mode { kOff, kLegacy, kPae, kFourLevel, kFiveLevel };

Mode mode_of(const Registers& registers) {
  if ((registers.cr0 & kCr0Paging) == 0)
    return Mode::kOff;
  if ((registers.efer & kEferLma) != 0)
    return (registers.cr4 & kCr4La57) != 0 ? Mode::kFiveLevel : Mode::kFourLevel;
  return (registers.cr4 & kCr4Pae) != 0 ? Mode::kPae : Mode::kLegacy;
}

bool is_canonical(uint64_t address, unsigned width) {
  const auto value = static_cast<int64_t>(address);
  return value >> (width - 1) == 0 || value >> (width - 1) == -1;
}

class Walk {
public:
  Walk(std::string_view operation, Gva gva, const Registers& registers, const GuestMemory& memory)
      : operation_(operation), gva_(gva.value), registers_(registers), memory_(memory), mode_(mode_of(registers)) {}

  std::expected<Translation, Error> run();
  // Of the block that run() ended at.
  [[nodiscard]] uint64_t block_bytes() const { return level_ == 0 ? kLargestBlock : 1ULL << page_shift(level_); }

private:
  static constexpr uint64_t kLargestBlock = 1ULL << 47; // no address of such a block has a table
  [[nodiscard]] std::unexpected<Error> refuse(std::string reason) const {
    return std::unexpected(
        Error{std::string(operation_), "gva:" + to_hex(gva_), std::move(reason), Status::kFailed});
  }
  [[nodiscard]] std::string level_text(unsigned level) const { return "level " + std::to_string(level) + " entry"; }
  [[nodiscard]] unsigned top_level() const;
  [[nodiscard]] uint64_t top_table() const;
  [[nodiscard]] uint64_t entry_gpa(uint64_t table, unsigned level) const;
  [[nodiscard]] unsigned page_shift(unsigned level) const;
  [[nodiscard]] bool maps_page(uint64_t entry, unsigned level) const;
  [[nodiscard]] uint64_t reserved_bits(uint64_t entry, unsigned level) const;
  [[nodiscard]] Translation page(uint64_t entry, unsigned level) const;
  std::expected<uint64_t, Error> read_entry(uint64_t gpa, unsigned level) const;

  std::string_view operation_;
  uint64_t gva_;
  const Registers& registers_;
  const GuestMemory& memory_;
  Mode mode_;
  unsigned level_ = 0;                  // that was looked at last; 0: none yet
  uint64_t rights_ = kWritable | kUser; // what every level so far allows
  bool no_execute_ = false;             // what any level so far forbids
};

unsigned Walk::top_level() const {
  switch (mode_) {
  case Mode::kOff:
    return 0;
  case Mode::kLegacy:
    return 2;
  case Mode::kPae:
    return 3;
  case Mode::kFourLevel:
    return 4;
  case Mode::kFiveLevel:
    return 5;
  }
  return 0;
}

uint64_t Walk::top_table() const {
  if (mode_ == Mode::kLegacy)
    return registers_.cr3 & bits(31, 12);
  if (mode_ == Mode::kPae)
    return registers_.cr3 & bits(31, 5);
  return registers_.cr3 & kAddressBits;
}

// How many address bits a page mapped at this level covers.
unsigned Walk::page_shift(unsigned level) const {
  if (mode_ == Mode::kLegacy)
    return 12 + 10 * (level - 1);
  return 12 + 9 * (level - 1);
}

uint64_t Walk::entry_gpa(uint64_t table, unsigned level) const {
  if (mode_ == Mode::kLegacy)
    return table + ((gva_ >> page_shift(level)) & 0x3ff) * 4;
  return table + ((gva_ >> page_shift(level)) & 0x1ff) * 8;
}

bool Walk::maps_page(uint64_t entry, unsigned level) const {
  if (level == 1)
    return true;
  if ((entry & kLarge) == 0)
    return false;
  if (mode_ == Mode::kLegacy)
    return (registers_.cr4 & kCr4Pse) != 0; // without PSE the bit is ignored
  if (level == 3)
    return mode_ != Mode::kPae; // reserved there
  return level == 2;
}

uint64_t Walk::reserved_bits(uint64_t entry, unsigned level) const {
  if (mode_ == Mode::kLegacy)
    return level == 2 && maps_page(entry, level) ? bits(21, 21) : 0; // bits 20:13 are address bits 39:32
  uint64_t reserved = (registers_.efer & kEferNxe) == 0 ? kNoExecute : 0;
  if (mode_ == Mode::kPae) {
    reserved |= bits(62, 52);
    if (level == 3)
      return reserved | bits(2, 1) | bits(8, 5) | kNoExecute;
  }
  if (level >= 4)
    return reserved | kLarge;
  if (level > 1 && maps_page(entry, level))
    return reserved | bits(page_shift(level) - 1, 13); // bit 12 is PAT
  return reserved;
}

std::expected<uint64_t, Error> Walk::read_entry(uint64_t gpa, unsigned level) const {
  // One copy: the guest may change the entry, but not what was checked.
  uint64_t entry = 0;
  const size_t entry_bytes = mode_ == Mode::kLegacy ? 4 : 8;
  if (!memory_.read(Gpa{gpa}, std::as_writable_bytes(std::span(&entry, 1)).first(entry_bytes)))
    return refuse("not mapped: " + level_text(level) + " at gpa:" + to_hex(gpa) + " lies outside memory");
  const std::string place = level_text(level) + " at gpa:" + to_hex(gpa) + " is " + to_hex(entry);
  if ((entry & kPresent) == 0)
    return refuse("not mapped: " + place);
  if (const uint64_t reserved = entry & reserved_bits(entry, level); reserved != 0)
    return refuse("malformed: " + place + ", reserved bits " + to_hex(reserved) + " are set");
  return entry;
}

Translation Walk::page(uint64_t entry, unsigned level) const {
  const uint64_t page_bytes = 1ULL << page_shift(level);
  uint64_t base = entry & kAddressBits & ~(page_bytes - 1);
  if (mode_ == Mode::kLegacy && level == 2) // PSE-36
    base |= (entry & bits(20, 13)) << (32 - 13);
  return Translation{Gpa{base + (gva_ & (page_bytes - 1))}, page_bytes, (rights_ & kWritable) != 0,
                     (rights_ & kUser) != 0, !no_execute_};
}

std::expected<Translation, Error> Walk::run() {
  const bool long_mode = mode_ == Mode::kFourLevel || mode_ == Mode::kFiveLevel;
  if (long_mode && !is_canonical(gva_, mode_ == Mode::kFiveLevel ? 57 : 48))
    return refuse("not canonical: the vCPU uses " + std::to_string(top_level()) + "-level paging");
  if (!long_mode && gva_ > UINT32_MAX)
    return refuse("beyond 32 bits: the vCPU is not in 64-bit mode");
  if (mode_ == Mode::kOff)
    return Translation{Gpa{gva_}, 1ULL << 32, true, true, true};

  uint64_t table = top_table();
  for (unsigned level = top_level(); level != 0; --level) {
    level_ = level;
    const auto entry = read_entry(entry_gpa(table, level), level);
    if (!entry)
      return std::unexpected(entry.error());
    if (mode_ != Mode::kPae || level != 3) // PAE's top entries carry no rights
      rights_ &= *entry;
    no_execute_ = no_execute_ || (*entry & kNoExecute) != 0;
    if (maps_page(*entry, level))
      return page(*entry, level);
    table = *entry & kAddressBits;
  }
  return refuse("not mapped"); // level 1 always maps a page
}

} // namespace

std::expected<Translation, Error> translate(std::string_view operation, Gva gva, const Registers& registers,
                                            const GuestMemory& memory) {
  return Walk(operation, gva, registers, memory).run();
}

Block block_at(Gva gva, const Registers& registers, const GuestMemory& memory) {
  Walk walk("", gva, registers, memory);
  const auto page = walk.run();
  if (page)
    return {*page, page->page_bytes};
  return {std::nullopt, walk.block_bytes()};
}

} // namespace stopvisor::vmm
