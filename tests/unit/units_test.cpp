// SPDX-License-Identifier: Apache-2.0
// Sizes, durations, hexadecimal numbers and guest addresses as users write them.
#include "vmm/units.h"

#include <gtest/gtest.h>

#include "vmm/guest_address.h"

namespace stopvisor::vmm {
namespace {

using namespace std::chrono_literals;

std::string size_refusal(std::string_view text) {
  const auto size = parse_size("--memory", text);
  if (size)
    return "taken: " + std::to_string(*size);
  EXPECT_EQ(size.error().status, Status::kUsage);
  return size.error().message();
}

std::string duration_refusal(std::string_view text) {
  const auto duration = parse_duration("--max", text);
  if (duration)
    return "taken: " + std::to_string(duration->count());
  EXPECT_EQ(duration.error().status, Status::kUsage);
  return duration.error().message();
}

TEST(Size, TakesNumbersWithAndWithoutUnit) {
  EXPECT_EQ(parse_size("", "0"), 0u);
  EXPECT_EQ(parse_size("", "4097"), 4097u);
  EXPECT_EQ(parse_size("", "2K"), 2048u);
  EXPECT_EQ(parse_size("", "256M"), 256u << 20);
  EXPECT_EQ(parse_size("", "3g"), 3ULL << 30);
  EXPECT_EQ(parse_size("", "2T"), 2ULL << 40);
  EXPECT_EQ(parse_size("", "1.5G"), 1536u << 20);
  EXPECT_EQ(parse_size("", "0.25K"), 256u);
  EXPECT_EQ(parse_size("", "18446744073709551615"), UINT64_MAX);
}

TEST(Size, RefusesWhatIsNoSize) {
  EXPECT_EQ(size_refusal(""), "--memory: not a size: expected a number and K, M, G, T or nothing");
  EXPECT_EQ(size_refusal("-1"), "--memory: -1: not a size: expected a number and K, M, G, T or nothing");
  EXPECT_EQ(size_refusal(" 1"), "--memory:  1: not a size: expected a number and K, M, G, T or nothing");
  EXPECT_EQ(size_refusal("1P"), "--memory: 1P: unknown unit 'P': expected K, M, G, T or nothing");
  EXPECT_EQ(size_refusal("1.G"), "--memory: 1.G: unknown unit '.G': expected K, M, G, T or nothing");
  EXPECT_EQ(size_refusal("1.1234567G"),
            "--memory: 1.1234567G: unknown unit '.1234567G': expected K, M, G, T or nothing");
  EXPECT_EQ(size_refusal("1.5"), "--memory: 1.5: size is not a whole number of the smallest unit");
  EXPECT_EQ(size_refusal("0.3K"), "--memory: 0.3K: size is not a whole number of the smallest unit");
  EXPECT_EQ(size_refusal("16777215.9999999T"),
            "--memory: 16777215.9999999T: unknown unit '.9999999T': expected K, M, G, T or nothing");
  EXPECT_EQ(size_refusal("17179869184G"), "--memory: 17179869184G: size is too large");
  EXPECT_EQ(size_refusal("18446744073709551616"), "--memory: 18446744073709551616: size is too large");
}

TEST(Duration, TakesUnits) {
  EXPECT_EQ(parse_duration("", "7us"), 7us);
  EXPECT_EQ(parse_duration("", "200ms"), 200ms);
  EXPECT_EQ(parse_duration("", "0s"), 0s);
  EXPECT_EQ(parse_duration("", "0.5s"), 500ms);
  EXPECT_EQ(parse_duration("", "1.5us"), 1500ns);
}

TEST(Duration, RefusesWhatIsNoDuration) {
  EXPECT_EQ(duration_refusal("5"), "--max: 5: duration lacks a unit: expected us, ms or s");
  EXPECT_EQ(duration_refusal("5m"), "--max: 5m: unknown unit 'm': expected us, ms or s");
  EXPECT_EQ(duration_refusal("ms"), "--max: ms: not a duration: expected a number and us, ms or s");
  EXPECT_EQ(duration_refusal("9223372037s"), "--max: 9223372037s: duration is too large");
}

TEST(Hex, IsReadAsItIsWritten) {
  EXPECT_EQ(to_hex(0), "0x0");
  EXPECT_EQ(to_hex(UINT64_MAX), "0xffffffffffffffff");
  EXPECT_EQ(parse_hex("0xffffffffffffffff"), UINT64_MAX);
  EXPECT_EQ(parse_hex("0xAb"), 0xabu);
  for (const char* wrong : {"", "0x", "12", "0x1g", "0x-1", "0x 1", "0X1", "0x10000000000000000"})
    EXPECT_FALSE(parse_hex(wrong)) << wrong;
}

std::string address_refusal(std::string_view text) {
  const auto address = parse_guest_address("peek", text);
  if (address)
    return "taken: " + to_string(*address);
  EXPECT_EQ(address.error().status, Status::kUsage);
  return address.error().reason;
}

TEST(Address, IsReadAsItIsWritten) {
  for (const char* text : {"gpa:0x1000", "gva:0xffffffff81000000", "gva:0x0@2", "sym:linux_banner", "sym:f+0x10",
                           "sym:f@3", "sym:f+0x10@3"}) {
    const auto address = parse_guest_address("peek", text);
    ASSERT_TRUE(address) << address.error().message();
    EXPECT_EQ(to_string(*address), text);
  }
  const auto address = parse_guest_address("peek", "gva:0x1f@31");
  EXPECT_EQ(*address, (GuestAddress{GuestAddress::Kind::kVirtual, 0x1f, 31, {}}));
}

TEST(Address, RefusalNamesWhatIsWrong) {
  EXPECT_EQ(address_refusal("0x1000"),
            "not an address: expected gpa:0x..., gva:0x...[@CPU] or sym:NAME[+0x...][@CPU]");
  EXPECT_EQ(address_refusal("foo:1"),
            "unknown kind of address 'foo': expected gpa:0x..., gva:0x...[@CPU] or sym:NAME[+0x...][@CPU]");
  EXPECT_EQ(address_refusal("gpa:1000"), "'1000' is not a hexadecimal number of 1 to 16 digits after 0x");
  EXPECT_EQ(address_refusal("gpa:0x10@1"), "a guest physical address takes no @vCPU");
  EXPECT_EQ(address_refusal("gva:0x10@"), "'' is not a vCPU number");
  EXPECT_EQ(address_refusal("gva:0x10@-1"), "'-1' is not a vCPU number");
  EXPECT_EQ(address_refusal("gva:0x10@4294967296"), "'4294967296' is not a vCPU number");
  EXPECT_EQ(address_refusal("gva:@1"), "'' is not a hexadecimal number of 1 to 16 digits after 0x");
  EXPECT_EQ(address_refusal("sym:"), "the symbol's name is missing");
  EXPECT_EQ(address_refusal("sym:+0x1"), "the symbol's name is missing");
  EXPECT_EQ(address_refusal("sym:f+8"), "'8' is not a hexadecimal number of 1 to 16 digits after 0x");
  EXPECT_EQ(address_refusal("sym:f@x"), "'x' is not a CPU number");
  EXPECT_EQ(address_refusal("sym:@1"), "the symbol's name is missing");
}

} // namespace
} // namespace stopvisor::vmm
