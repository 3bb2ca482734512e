// SPDX-License-Identifier: Apache-2.0
// The page walk on tables made by hand: every mode and page size, every way an entry can be wrong.
#include "vmm/page_walk.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "vmm/guest_range.h"

namespace stopvisor::vmm {
namespace {

constexpr uint64_t kPresent = 1, kWritable = 2, kUser = 4, kLarge = 0x80, kNoExecute = 1ULL << 63;
constexpr uint64_t kAll = kPresent | kWritable | kUser;
// One table per level, the top one where CR3 points.
constexpr uint64_t table(unsigned level) {
  return uint64_t{0x1000} * level;
}

class PageWalk : public ::testing::Test {
protected:
  void SetUp() override {
    auto created = GuestMemory::create(16 << 20, MemoryBacking::kAnonymous);
    ASSERT_TRUE(created) << created.error().message();
    memory_.emplace(*std::move(created));
  }
  void use(uint64_t cr4, uint64_t efer, unsigned levels) {
    registers_.cr0 = 0x8000'0001;
    registers_.cr4 = cr4;
    registers_.efer = efer;
    registers_.cr3 = table(levels);
  }
  void use_four_level() { use(0x20, 0xd00, 4); }
  void use_five_level() { use(0x1020, 0xd00, 5); }
  void use_pae() { use(0x20, 0x800, 3); }
  void use_legacy() { use(0x10, 0, 2); }

  template <typename Entry = uint64_t>
  void set(unsigned level, uint64_t index, Entry entry) {
    ASSERT_TRUE(memory_->write(Gpa{table(level) + index * sizeof(Entry)},
                               std::as_bytes(std::span<const Entry>(&entry, 1))));
  }
  // Maps index 1 of each table from the top down to `level`, where `entry` stands.
  void map(unsigned top, unsigned level, uint64_t entry, uint64_t index = 1) {
    for (unsigned i = top; i > level; --i)
      set(i, index, table(i - 1) | kAll);
    set(level, index, entry);
  }
  Translation translated(uint64_t gva) {
    const auto translation = translate("peek", Gva{gva}, registers_, *memory_);
    if (translation)
      return *translation;
    ADD_FAILURE() << translation.error().message();
    return {};
  }
  std::string refusal(uint64_t gva) {
    const auto translation = translate("peek", Gva{gva}, registers_, *memory_);
    return translation ? "" : translation.error().message();
  }

  std::optional<GuestMemory> memory_;
  Registers registers_;
};

// Index 1 at each of four (five) levels; the sign is not touched by these.
constexpr uint64_t kFour = (1ULL << 39) | (1ULL << 30) | (1ULL << 21) | (1ULL << 12);
constexpr uint64_t kFive = kFour | (1ULL << 48);

TEST_F(PageWalk, FourLevelsMap4KiBPages) {
  use_four_level();
  map(4, 1, 0xabc'd000 | kAll);
  const Translation page = translated(kFour + 0x123);
  EXPECT_EQ(page.gpa.value, 0xabc'd123u);
  EXPECT_EQ(page.page_bytes, 0x1000u);
  EXPECT_TRUE(page.writable && page.user && page.executable);
}

TEST_F(PageWalk, FourLevelsMap2MiBPages) {
  use_four_level();
  map(4, 2, 0x4000'0000 | 0x1000 | kLarge | kAll); // bit 12 is PAT, not an address bit
  const Translation page = translated(kFour + 0x123);
  EXPECT_EQ(page.gpa.value, 0x4000'1123u);
  EXPECT_EQ(page.page_bytes, 2u << 20);
}

TEST_F(PageWalk, FourLevelsMap1GiBPages) {
  use_four_level();
  map(4, 3, 0x1'4000'0000 | kLarge | kAll);
  const Translation page = translated(kFour + 0x123);
  EXPECT_EQ(page.gpa.value, 0x1'4020'1123u);
  EXPECT_EQ(page.page_bytes, 1u << 30);
}

TEST_F(PageWalk, FiveLevelsAreWalked) {
  use_five_level();
  map(5, 1, 0xabc'd000 | kAll);
  EXPECT_EQ(translated(kFive + 0x123).gpa.value, 0xabc'd123u);
}

TEST_F(PageWalk, UpperHalfIsWalked) {
  use_four_level();
  map(4, 1, 0xabc'd000 | kAll, 511);
  EXPECT_EQ(translated(0xffff'ffff'ffff'f008).gpa.value, 0xabc'd008u);
  use_five_level();
  map(5, 1, 0xabc'd000 | kAll, 511);
  EXPECT_EQ(translated(0xffff'ffff'ffff'f008).gpa.value, 0xabc'd008u);
}

TEST_F(PageWalk, Cr3FlagBitsAreIgnored) {
  use_four_level();
  registers_.cr3 |= 0xfff; // PCID
  map(4, 1, 0xabc'd000 | kAll);
  EXPECT_EQ(translated(kFour).gpa.value, 0xabc'd000u);
}

TEST_F(PageWalk, RightsAreWhatEveryLevelAllows) {
  use_four_level();
  map(4, 1, 0xabc'd000 | kAll);
  set(3, 1, table(2) | kPresent | kUser);
  EXPECT_FALSE(translated(kFour).writable);
  set(3, 1, table(2) | kPresent | kWritable);
  EXPECT_FALSE(translated(kFour).user);
  EXPECT_TRUE(translated(kFour).writable);
  set(3, 1, table(2) | kAll | kNoExecute);
  EXPECT_FALSE(translated(kFour).executable);
}

TEST_F(PageWalk, AbsentEntryIsNamedAtEachLevel) {
  use_five_level();
  map(5, 1, 0xabc'd000 | kAll);
  for (unsigned level = 5; level > 0; --level) {
    set(level, 1, uint64_t{0});
    EXPECT_EQ(refusal(kFive), "peek: gva:0x1008040201000: not mapped: level " + std::to_string(level) +
                                  " entry at gpa:0x" + std::to_string(level) + "008 is 0x0");
    set(level, 1, level == 1 ? 0xabc'd000 | kAll : table(level - 1) | kAll);
  }
}

TEST_F(PageWalk, EntryWithoutPresentBitIsShown) {
  use_four_level();
  map(4, 1, 0xdead'0000 | kWritable);
  EXPECT_EQ(refusal(kFour), "peek: gva:0x8040201000: not mapped: level 1 entry at gpa:0x1008 is 0xdead0002");
}

TEST_F(PageWalk, TableOutsideMemoryIsNamed) {
  use_four_level();
  set(4, 1, 0xf'0000'0000 | kAll);
  EXPECT_EQ(refusal(kFour),
            "peek: gva:0x8040201000: not mapped: level 3 entry at gpa:0xf00000008 lies outside memory");
  registers_.cr3 = 0x000f'ffff'ffff'f000;
  EXPECT_NE(refusal(kFour).find("level 4 entry at gpa:0xffffffffff008 lies outside memory"), std::string::npos);
}

TEST_F(PageWalk, ReservedBitsAreNamed) {
  use_four_level();
  map(4, 2, 0x4000'0000 | 0x2000 | kLarge | kAll); // bit 13
  EXPECT_NE(
      refusal(kFour).find("malformed: level 2 entry at gpa:0x2008 is 0x40002087, reserved bits 0x2000 are set"),
      std::string::npos);
  map(4, 3, 0x2000 | kLarge | kAll);
  EXPECT_NE(refusal(kFour).find("reserved bits 0x2000"), std::string::npos);
  map(4, 4, table(3) | kLarge | kAll);
  EXPECT_NE(refusal(kFour).find("malformed: level 4"), std::string::npos);
  map(4, 1, 0x1000 | kAll | kNoExecute);
  registers_.efer = 0x500; // NXE clear
  EXPECT_NE(refusal(kFour).find("reserved bits 0x8000000000000000"), std::string::npos);
}

TEST_F(PageWalk, LargeBitOfALevel1EntryIsPat) {
  use_four_level();
  map(4, 1, 0xabc'd000 | kLarge | kAll);
  EXPECT_EQ(translated(kFour).page_bytes, 0x1000u);
}

TEST_F(PageWalk, AddressThatIsNotCanonicalIsNamed) {
  use_four_level();
  EXPECT_EQ(refusal(0x0000'8000'0000'0000),
            "peek: gva:0x800000000000: not canonical: the vCPU uses 4-level paging");
  EXPECT_NE(refusal(0xffff'7fff'ffff'ffff), "");
  use_five_level();
  EXPECT_NE(refusal(0x0100'0000'0000'0000).find("not canonical"), std::string::npos);
  EXPECT_EQ(refusal(0x0000'8000'0000'0000).find("not canonical"), std::string::npos);
}

// A table that maps itself: the walk ends after its levels.
TEST_F(PageWalk, TableThatMapsItselfEndsTheWalk) {
  use_five_level();
  set(5, 1, table(5) | kAll);
  EXPECT_EQ(translated(kFive).gpa.value, table(5));
}

TEST_F(PageWalk, PaeMaps4KiBAnd2MiBPages) {
  use_pae();
  constexpr uint64_t kGva = (1u << 30) | (1u << 21) | (1u << 12);
  set(3, 1, table(2) | kPresent);
  set(2, 1, table(1) | kAll);
  set(1, 1, 0x1'2345'6000 | kAll);
  EXPECT_EQ(translated(kGva + 8).gpa.value, 0x1'2345'6008u);
  EXPECT_TRUE(translated(kGva).writable);
  registers_.cr3 |= 0x18; // PWT and PCD, not address bits
  EXPECT_EQ(translated(kGva + 8).gpa.value, 0x1'2345'6008u);
  set(2, 1, 0x8000'0000 | kLarge | kAll);
  EXPECT_EQ(translated(kGva + 8).gpa.value, 0x8000'1008u);
  set(3, 1, table(2) | kAll); // reserved at the top level of PAE
  EXPECT_NE(refusal(kGva).find("reserved bits 0x6"), std::string::npos);
}

TEST_F(PageWalk, LegacyMaps4KiBAnd4MiBPages) {
  use_legacy();
  constexpr uint64_t kGva = (1u << 22) | (1u << 12);
  set<uint32_t>(2, 1, static_cast<uint32_t>(table(1) | kAll));
  set<uint32_t>(1, 1, static_cast<uint32_t>(0xabc'd000 | kAll));
  EXPECT_EQ(translated(kGva + 8).gpa.value, 0xabc'd008u);
  set<uint32_t>(2, 1, static_cast<uint32_t>(0xc0'0000 | 1u << 13 | kLarge | kAll)); // PSE-36: address bit 32
  EXPECT_EQ(translated(kGva + 8).gpa.value, 0x1'00c0'1008u);
  EXPECT_EQ(translated(kGva).page_bytes, 4u << 20);
  EXPECT_NE(refusal(0x1'0000'0000).find("beyond 32 bits"), std::string::npos);
}

TEST_F(PageWalk, AddressesAreThemselvesWithoutPaging) {
  EXPECT_EQ(translated(0x1234).gpa.value, 0x1234u);
  EXPECT_NE(refusal(0x1'0000'0000), "");
}

class Range : public PageWalk {
protected:
  std::string range_refusal(const GuestAddress& address, uint64_t length) {
    const auto pieces = resolve_range("poke", address, length, registers_, *memory_);
    return pieces ? "" : pieces.error().message();
  }
};

TEST_F(Range, VirtualRangeOverTwoPagesIsTwoPieces) {
  use_four_level();
  map(4, 1, 0x50'0000 | kAll);
  set(1, 2, 0x40'0000 | kAll);
  const GuestAddress address{GuestAddress::Kind::kVirtual, kFour + 0xffc, 0, {}};

  const auto pieces = resolve_range("poke", address, 8, registers_, *memory_);

  ASSERT_TRUE(pieces) << pieces.error().message();
  ASSERT_EQ(pieces->size(), 2u);
  EXPECT_EQ((*pieces)[0].data(), memory_->range(Gpa{0x50'0ffc}, 4).data());
  EXPECT_EQ((*pieces)[1].data(), memory_->range(Gpa{0x40'0000}, 4).data());
}

TEST_F(Range, HoleInTheMiddleIsNamed) {
  use_four_level();
  map(4, 1, 0x50'0000 | kAll);
  const GuestAddress address{GuestAddress::Kind::kVirtual, kFour + 0xffc, 0, {}};
  EXPECT_EQ(range_refusal(address, 8), "poke: gva:0x8040202000: not mapped: level 1 entry at gpa:0x1010 is 0x0");
}

TEST_F(Range, WhatIsNoRamIsNamed) {
  use_four_level();
  map(4, 1, 0xd000'0000 | kAll);
  EXPECT_EQ(range_refusal({GuestAddress::Kind::kVirtual, kFour, 0, {}}, 8),
            "poke: gva:0x8040201000: gva:0x8040201000 maps gpa:0xd0000000, which is not RAM for 8 bytes");
  EXPECT_EQ(range_refusal({GuestAddress::Kind::kPhysical, (16 << 20) - 4, 0, {}}, 8),
            "poke: gpa:0xfffffc: 8 bytes there are not all RAM");
  EXPECT_EQ(range_refusal({GuestAddress::Kind::kPhysical, UINT64_MAX, 0, {}}, 2),
            "poke: gpa:0xffffffffffffffff: runs past the end of the address space");
  EXPECT_EQ(range_refusal({GuestAddress::Kind::kPhysical, 0, 0, {}}, 0), "poke: gpa:0x0: length is 0");
  EXPECT_EQ(range_refusal({GuestAddress::Kind::kSymbol, 0, 0, "f"}, 4),
            "poke: sym:f: needs symbols, and none are loaded");
}

} // namespace
} // namespace stopvisor::vmm
