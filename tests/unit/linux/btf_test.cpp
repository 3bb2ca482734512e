// SPDX-License-Identifier: Apache-2.0
// The reader of a kernel's type information, and everything that may be wrong with it.
#include "vmm/linux/btf.h"

#include <gtest/gtest.h>

#include "tests/unit/linux/btf_builder.h"

namespace stopvisor::vmm {
namespace {

using testing::BtfBuilder;
using testing::Buffer;

std::string refusal(const Buffer& bytes) {
  const auto btf = Btf::read(bytes);
  return btf ? "read" : btf.error();
}

TEST(Btf, MembersAreFoundWithOffsetAndSize) {
  BtfBuilder builder;
  const uint32_t integer = builder.integer("int", 4);
  const uint32_t alias = builder.add(8, "pid_t", builder.add(10, "", integer)); // typedef of const int
  const uint32_t name = builder.array(builder.integer("char", 1), 16);
  builder.structure(
      "task_struct", 64,
      {{"first", integer, 0}, {"pid", alias, 64}, {"comm", name, 128}, {"next", builder.pointer(1), 256}});
  const Buffer bytes = builder.build();
  const auto btf = Btf::read(bytes);
  ASSERT_TRUE(btf) << btf.error();
  EXPECT_EQ(btf->member("task_struct", "pid"), (Btf::Member{8, 4}));
  EXPECT_EQ(btf->member("task_struct", "comm"), (Btf::Member{16, 16}));
  EXPECT_FALSE(btf->member("task_struct", "co"));
  EXPECT_FALSE(btf->member("task_struct", "command"));
  EXPECT_FALSE(btf->member("task", "pid"));
}

TEST(Btf, MembersOfAnonymousMembersAreFound) {
  BtfBuilder builder;
  const uint32_t number = builder.integer("int", 4);
  const uint32_t inner = builder.structure("", 8, {{"before", number, 0}, {"wanted", number, 32}});
  builder.structure("outer", 32, {{"named", inner, 0}, {"", inner, 128}});
  const Buffer bytes = builder.build();
  const auto btf = Btf::read(bytes);
  ASSERT_TRUE(btf) << btf.error();
  EXPECT_EQ(btf->member("outer", "wanted"), (Btf::Member{20, 4}));
}

TEST(Btf, BitFieldsAreNotOffered) {
  BtfBuilder builder;
  const uint32_t integer = builder.integer("int", 4);
  builder.structure("s", 16, {{"bits", integer, 3 << 24 | 5}, {"whole", integer, 64}}, true);
  const Buffer bytes = builder.build();
  const auto btf = Btf::read(bytes);
  ASSERT_TRUE(btf) << btf.error();
  EXPECT_FALSE(btf->member("s", "bits"));
  EXPECT_EQ(btf->member("s", "whole"), (Btf::Member{8, 4}));
}

TEST(Btf, VariablesHaveTheirTypesSize) {
  BtfBuilder builder;
  builder.variable("apic", builder.integer("short", 2));
  const Buffer bytes = builder.build();
  const auto btf = Btf::read(bytes);
  ASSERT_TRUE(btf) << btf.error();
  EXPECT_EQ(btf->size_of_variable("apic"), 2u);
  EXPECT_FALSE(btf->size_of_variable("other"));
}

TEST(Btf, TypesThatGoInCirclesEnd) {
  BtfBuilder builder;
  builder.add(8, "loop", 1);                                                       // a typedef of itself
  builder.structure("self", 8, {{"", 2, 0}, {"", 2, 0}, {"", 2, 0}, {"x", 1, 0}}); // contains itself, three times
  builder.array(3, 1000000);                                                       // an array of itself
  builder.variable("v", 3);
  const Buffer bytes = builder.build();
  const auto btf = Btf::read(bytes);
  ASSERT_TRUE(btf) << btf.error();
  EXPECT_FALSE(btf->member("self", "nothing"));
  const auto found = btf->member("self", "x");
  EXPECT_TRUE(!found || !found->size_bytes);
  EXPECT_FALSE(btf->size_of_variable("v"));
}

TEST(Btf, WhatIsMalformedIsNamed) {
  const char* const no_header = "it does not begin with BTF's header, version 1";
  EXPECT_EQ(refusal({}), no_header);
  EXPECT_EQ(refusal(Buffer(23)), no_header);
  BtfBuilder builder;
  builder.integer("int", 4);
  const Buffer good = builder.build();
  EXPECT_EQ(refusal(good), "read");
  Buffer bytes = good;
  bytes[2] = std::byte{2};
  EXPECT_EQ(refusal(bytes), no_header);
  bytes = good;
  bytes[12] = std::byte{0xff}; // more types than there are bytes
  EXPECT_EQ(refusal(bytes), "a section of it lies outside of it, or is empty");
  bytes = good;
  bytes.back() = std::byte{'x'};
  EXPECT_EQ(refusal(bytes), "its last string has no end");
  bytes = good;
  bytes[24 + 7] = std::byte{31};
  EXPECT_EQ(refusal(bytes), "type 1 is of the unknown kind 31");
  bytes[24 + 7] = std::byte{4}; // a structure
  bytes[24 + 5] = std::byte{0xff};
  EXPECT_EQ(refusal(bytes), "type 1 is cut off");
  for (size_t length = 0; length < good.size(); ++length)
    EXPECT_NE(refusal(Buffer(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(length))), "read") << length;
}

} // namespace
} // namespace stopvisor::vmm
