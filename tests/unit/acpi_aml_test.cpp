// SPDX-License-Identifier: Apache-2.0
// The AML writer: bytes as ACPI 6.5, chapter 20, has them. acpi_tables_test.cpp has iasl read whole tables.
#include "vmm/acpi/aml.h"

#include <gtest/gtest.h>

#include <string>

namespace stopvisor::vmm::aml {
namespace {

Bytes bytes(std::initializer_list<uint8_t> values) {
  Bytes result;
  for (const uint8_t value : values)
    result.push_back(std::byte{value});
  return result;
}

TEST(Aml, IntegersTakeTheFewestBytes) {
  EXPECT_EQ(integer(0), bytes({0x00}));
  EXPECT_EQ(integer(1), bytes({0x01}));
  EXPECT_EQ(integer(2), bytes({0x0a, 0x02}));
  EXPECT_EQ(integer(0xff), bytes({0x0a, 0xff}));
  EXPECT_EQ(integer(0x100), bytes({0x0b, 0x00, 0x01}));
  EXPECT_EQ(integer(0x1'0000), bytes({0x0c, 0x00, 0x00, 0x01, 0x00}));
  EXPECT_EQ(integer(0x1'0000'0000), bytes({0x0e, 0, 0, 0, 0, 1, 0, 0, 0}));
}

TEST(Aml, NamesArePaddedAndCounted) {
  EXPECT_EQ(name_path("_HID"), bytes({'_', 'H', 'I', 'D'}));
  EXPECT_EQ(name_path("GED"), bytes({'G', 'E', 'D', '_'}));
  EXPECT_EQ(name_path("\\_S5"), bytes({'\\', '_', 'S', '5', '_'}));
  EXPECT_EQ(name_path("\\_SB.PWRB"), bytes({'\\', 0x2e, '_', 'S', 'B', '_', 'P', 'W', 'R', 'B'}));
  EXPECT_EQ(name_path("A.B.C"), bytes({0x2f, 3, 'A', '_', '_', '_', 'B', '_', '_', '_', 'C', '_', '_', '_'}));
}

TEST(Aml, EisaIdsAreCompressed) {
  EXPECT_EQ(eisa_id("PNP0501"), bytes({0x0c, 0x41, 0xd0, 0x05, 0x01}));
  EXPECT_EQ(eisa_id("PNP0C0C"), bytes({0x0c, 0x41, 0xd0, 0x0c, 0x0c}));
}

TEST(Aml, LengthsCountThemselvesInOneToFourBytes) {
  const auto length_of_buffer = [](size_t content) {
    const Bytes written = buffer(Bytes(content));
    const size_t bytes_of_size = integer(content).size();
    return Bytes(written.begin() + 1, written.end() - static_cast<ptrdiff_t>(content + bytes_of_size));
  };
  EXPECT_EQ(length_of_buffer(60), bytes({63}));                 // 1 + 2 + 60
  EXPECT_EQ(length_of_buffer(61), bytes({0x41, 0x04}));         // 65 = 2 + 2 + 61
  EXPECT_EQ(length_of_buffer(4090), bytes({0x4f, 0xff}));       // 4095 = 2 + 3 + 4090
  EXPECT_EQ(length_of_buffer(4091), bytes({0x81, 0x00, 0x01})); // 4097 = 3 + 3 + 4091
  EXPECT_EQ(length_of_buffer(0x10'0000 - 9), bytes({0x8f, 0xff, 0xff}));
  EXPECT_EQ(length_of_buffer(0x10'0000 - 8), bytes({0xc1, 0x00, 0x00, 0x01}));
}

TEST(Aml, TermsNest) {
  EXPECT_EQ(device("DEV", {name("_UID", integer(1))}),
            bytes({0x5b, 0x82, 0x0b, 'D', 'E', 'V', '_', 0x08, '_', 'U', 'I', 'D', 0x01}));
  EXPECT_EQ(package({integer(5), integer(0)}), bytes({0x12, 0x05, 2, 0x0a, 5, 0}));
  EXPECT_EQ(text("ab"), bytes({0x0d, 'a', 'b', 0}));
  EXPECT_EQ(if_set(local0(), 1, {notify("\\DEV", 0x80)}),
            bytes({0xa0, 0x0d, 0x7b, 0x60, 0x01, 0x00, 0x86, '\\', 'D', 'E', 'V', '_', 0x0a, 0x80}));
}

TEST(Aml, ResourcesEndWithATag) {
  EXPECT_EQ(resources({io_ports(0x3f8, 8), interrupt(4)}),
            bytes({0x11, 0x16, 0x0a, 0x13, 0x47, 1, 0xf8, 0x03, 0xf8, 0x03, 0, 8,
                   0x89, 6,    0,    3,    1,    4, 0,    0,    0,    0x79, 0}));
  EXPECT_EQ(memory32(0xd010'0000, 0x1000), bytes({0x86, 9, 0, 1, 0, 0, 0x10, 0xd0, 0, 0x10, 0, 0}));
}

} // namespace
} // namespace stopvisor::vmm::aml
