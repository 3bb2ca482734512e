// SPDX-License-Identifier: Apache-2.0
// The symbol tables a kernel carries: found by their structure, and refused wherever it does not hold.
#include "vmm/linux/kallsyms.h"

#include <gtest/gtest.h>

#include "tests/unit/linux/kallsyms_builder.h"

namespace stopvisor::vmm {
namespace {

using testing::Buffer;
using testing::KallsymsBuilder;

constexpr uint64_t kText = 0xffff'ffff'8100'0000;
using Order = KallsymsBuilder::Order;

KallsymsBuilder builder_of(size_t count, Order order = Order::kOffsetsFirst) {
  KallsymsBuilder builder;
  builder.order = order;
  builder.add(0x1000, 'A', "per_cpu_variable");
  for (size_t i = 0; i + 1 < count; ++i)
    builder.add(kText + i * 16, 'T', "linux_function_start_" + std::to_string(i));
  return builder;
}

std::expected<SymbolTable, std::string> find(Buffer bytes) {
  const auto image = KernelImage::of({{kText, std::move(bytes)}});
  return find_kallsyms(image, [](const SymbolTable&) -> std::expected<void, std::string> { return {}; });
}

std::string refusal(Buffer bytes) {
  const auto table = find(std::move(bytes));
  return table ? "found" : table.error();
}

Buffer with_zeros(Buffer bytes, size_t at) {
  for (size_t i = at; i < at + 8; ++i)
    bytes.at(i) = std::byte{0};
  return bytes;
}

TEST(Kallsyms, NamesAreMadeOfTokens) {
  const auto table = find(builder_of(1000).build(kText));
  ASSERT_TRUE(table) << table.error();
  EXPECT_EQ(table->size(), 1000u);
  EXPECT_EQ(table->address_of("linux_function_start_998"), kText + uint64_t{998} * 16);
  EXPECT_EQ(table->address_of("per_cpu_variable"), 0x1000u);
  EXPECT_EQ((*table)[1].type, 'T');
}

// 64 names have one marker, 256 exactly one, 257 two.
TEST(Kallsyms, AreFoundWhateverTheirNumber) {
  for (const size_t count : {64, 65, 255, 256, 257, 512, 513})
    for (const Order order : {Order::kOffsetsFirst, Order::kOffsetsFirstWithOrder, Order::kOffsetsLast}) {
      const auto table = find(builder_of(count, order).build(kText));
      ASSERT_TRUE(table) << count << ": " << table.error();
      EXPECT_EQ(table->size(), count);
    }
}

TEST(Kallsyms, EachPartThatIsMissingIsNamed) {
  EXPECT_EQ(refusal(Buffer(4096)), "no table of symbol-name tokens");
  EXPECT_EQ(refusal({}), "no table of symbol-name tokens");
  const Buffer whole = builder_of(300).build(kText);
  // The offsets first: their base is cut off, or lies outside the image.
  const size_t base_at = 64 + 300 * 4;
  EXPECT_NE(refusal(with_zeros(whole, base_at)).find("but no addresses that fit them"), std::string::npos);
  EXPECT_NE(refusal(with_zeros(whole, base_at + 8)).find("but no symbol names that fit them"), std::string::npos);
}

// 300 names have two markers, 8 bytes right before the tokens, of which the first is "~0".
TEST(Kallsyms, MarkersMustAgreeWithNames) {
  Buffer bytes = builder_of(300).build(kText);
  const auto first_tokens = std::as_bytes(std::span("~0\0linux_"));
  const auto tokens = std::ranges::search(bytes, first_tokens);
  ASSERT_FALSE(tokens.empty());
  *(tokens.begin() - 4) ^= std::byte{1}; // where the 257th name begins
  EXPECT_NE(refusal(bytes).find("but no symbol names that fit them"), std::string::npos);
}

TEST(Kallsyms, TablesThatAreCutOffAreRefused) {
  const Buffer whole = builder_of(300).build(kText);
  for (size_t length = 0; length < whole.size() - 64; length += 7) // 64 bytes behind them belong to nobody
    EXPECT_NE(refusal(Buffer(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length))), "found")
        << length;
}

TEST(Kallsyms, NameThatIsNotPrintableIsRefused) {
  KallsymsBuilder builder = builder_of(100);
  builder.add(kText + 8, 'T', "esc\x1b[2J");
  EXPECT_NE(refusal(builder.build(kText)), "found");
}

TEST(Kallsyms, NextTableIsTakenWhereTheFirstIsNotAccepted) {
  Buffer bytes = builder_of(100).build(kText);
  testing::align_to_8(bytes);
  testing::append(bytes, builder_of(200).build(kText));
  const auto image = KernelImage::of({{kText, std::move(bytes)}});
  const auto wants_200 = [](const SymbolTable& table) -> std::expected<void, std::string> {
    if (table.size() != 200)
      return std::unexpected("not this one");
    return {};
  };
  const auto table = find_kallsyms(image, wants_200);
  ASSERT_TRUE(table) << table.error();
  EXPECT_EQ(table->size(), 200u);
  const auto none = find_kallsyms(image, [](const SymbolTable&) -> std::expected<void, std::string> {
    return std::unexpected("not this one");
  });
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error(), "not this one");
}

// Numbers that could be counts, everywhere before the tokens, over bytes that could be names for ever.
TEST(Kallsyms, SearchForNamesEndsWhateverTheImageHolds) {
  Buffer bytes;
  for (size_t i = 0; i < 512 << 10; ++i)
    testing::append_number(bytes, uint64_t{0x1'0001}); // as names: lengths of 1 and empty ones
  Buffer ones(8 << 20, std::byte{1});
  for (size_t i = 0; i < ones.size(); i += 4096)
    std::memcpy(ones.data() + i, "\0\0\x10\0\0\0\0\0", 8); // a million names
  testing::append(bytes, ones);
  testing::append(bytes, builder_of(64).build(0)); // tokens, and a base that is none
  EXPECT_NE(refusal(std::move(bytes)), "found");
}

// The ten characters that tokens are looked for by, over and over: each place leads through 200 tokens and nowhere.
TEST(Kallsyms, SearchForTokensEndsWhateverTheImageHolds) {
  constexpr std::string_view kDigits("0\0001\0002\0003\0004\0005\0006\0007\0008\0009\0", 20);
  Buffer bytes;
  for (size_t i = 0; i < (KernelImage::kMostBytes >> 4) / kDigits.size(); ++i)
    testing::append(bytes, std::as_bytes(std::span(kDigits)));
  EXPECT_EQ(refusal(std::move(bytes)), "more than 4096 places look like symbol-name tokens");
}

TEST(SymbolTable, NearestSymbolIsFoundAndNothingOutside) {
  SymbolTable table;
  ASSERT_TRUE(table.add(kText, 't', "local"));
  ASSERT_TRUE(table.add(kText, 'T', "global"));
  ASSERT_TRUE(table.add(0x10, 'A', "per_cpu"));
  ASSERT_TRUE(table.add(kText + 0x100, 'B', "_end"));
  table.sort();
  EXPECT_EQ(table.place_of(kText)->text(), "global");
  EXPECT_EQ(table.place_of(kText + 0xff)->text(), "global+0xff");
  EXPECT_FALSE(table.place_of(kText + 0x100));
  EXPECT_FALSE(table.place_of(kText - 1));
  EXPECT_FALSE(table.place_of(0x10));
  EXPECT_FALSE(table.place_of(UINT64_MAX));
  EXPECT_FALSE(SymbolTable().place_of(kText));
}

TEST(SymbolTable, NameThatSeveralHaveIsNoAddress) {
  SymbolTable table;
  ASSERT_TRUE(table.add(kText, 't', "twin"));
  ASSERT_TRUE(table.add(kText + 8, 't', "twin"));
  table.sort();
  EXPECT_EQ(table.named("twin").size(), 2u);
  EXPECT_FALSE(table.address_of("twin"));
  EXPECT_TRUE(table.named("twi").empty());
  EXPECT_FALSE(table.add(kText, 'T', ""));
  EXPECT_FALSE(table.add(kText, 'T', "with space"));
  EXPECT_FALSE(table.add(kText, 'T', std::string(2000, 'x')));
}

} // namespace
} // namespace stopvisor::vmm
