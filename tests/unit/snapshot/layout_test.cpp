// SPDX-License-Identifier: Apache-2.0
// Pages of an extent, and which of them are RAM.
#include <gtest/gtest.h>

#include "tools/snapshot/manifest.h"

namespace stopvisor::snapshot {
namespace {

TEST(PageSetTest, ARunThatIsAddedIsItsPagesAndNoOthers) {
  for (size_t first = 0; first < kExtentPages; ++first)
    for (size_t pages = 0; first + pages <= kExtentPages; ++pages) {
      PageSet one_by_one;
      for (size_t page = first; page < first + pages; ++page)
        one_by_one.add(page);
      PageSet at_once;
      at_once.add(first, pages);
      ASSERT_EQ(at_once, one_by_one) << first << " " << pages;
    }
}

TEST(LayoutTest, AnExtentHasThePagesOfItsRegions) {
  std::vector<Region> regions{{.gpa = 0, .bytes = kExtentBytes + 5 * kPageBytes},
                              {.gpa = 1ULL << 32, .bytes = 70 * kPageBytes}};
  lay_out(regions);
  ASSERT_EQ(regions[1].offset, 2 * kExtentBytes);

  EXPECT_EQ(ram_of(regions, 0), ~PageSet{});
  PageSet rest;
  rest.add(0, 5);
  EXPECT_EQ(ram_of(regions, 1), rest);
  PageSet second;
  second.add(0, 70);
  EXPECT_EQ(ram_of(regions, 2), second);
  EXPECT_TRUE(ram_of(regions, 3).empty());
}

} // namespace
} // namespace stopvisor::snapshot
