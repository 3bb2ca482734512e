// SPDX-License-Identifier: Apache-2.0
// Pages the host wrote are told once each; and a serialised processor goes on where it was.
#include <gtest/gtest.h>

#include "vmm/serialise.h"
#include "vmm/written_pages.h"

namespace stopvisor::vmm {
namespace {

TEST(WrittenPages, AreToldOnceEachInOrder) {
  const std::vector<MemorySlot> slots{{Gpa{0}, 0x20'0000, nullptr}, {Gpa{0x1'0000'0000}, 0x4000, nullptr}};
  WrittenPages pages(slots);
  EXPECT_TRUE(pages.take().empty());
  pages.note(Gpa{0x1'0000'3ffc}, 4);
  pages.note(Gpa{0x1fff}, 2); // over a page's end
  pages.note(Gpa{0x1ffe}, 1);
  pages.note(Gpa{0x1f'ffff}, 0x1000); // past the slot's end
  pages.note(Gpa{0x8000'0000}, 8);    // no memory
  pages.note(Gpa{0x5000}, 0);
  EXPECT_EQ(pages.take(), (std::vector<Gpa>{Gpa{0x1000}, Gpa{0x2000}, Gpa{0x1f'f000}, Gpa{0x1'0000'3000}}));
  EXPECT_TRUE(pages.take().empty());
}

TEST(WrittenPages, AreFoundByTheHostsAddressesToo) {
  std::vector<std::byte> host(0x4000);
  WrittenPages pages(std::vector<MemorySlot>{{Gpa{0x8000}, 0x4000, host.data()}});
  const uint64_t before = pages.count();
  pages.note(std::span(host).subspan(0x1ffe, 4));
  EXPECT_EQ(pages.take(), (std::vector<Gpa>{Gpa{0x9000}, Gpa{0xa000}}));
  EXPECT_NE(pages.count(), before);
}

TEST(Serialise, LeavesEverythingAsItWas) {
  volatile uint64_t before = 0x1234;
  for (int i = 0; i < 1000; ++i)
    serialise_this_processor();
  EXPECT_EQ(before, 0x1234U);
}

} // namespace
} // namespace stopvisor::vmm
