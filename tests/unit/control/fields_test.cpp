// SPDX-License-Identifier: Apache-2.0
// Requests are read strictly: whatever does not fit is an error, and the first one is told.
#include "vmm/control/fields.h"

#include <gtest/gtest.h>

namespace stopvisor::vmm {
namespace {

TEST(Fields, AreThoseOfAnObjectOrNone) {
  EXPECT_TRUE(Fields::of_body("test", ""));
  EXPECT_TRUE(Fields::of_body("test", "{}"));
  for (const char* body : {"{", "[]", "null", "1", "{} x", "\xff"})
    EXPECT_EQ(Fields::of_body("test", body).error().status, Status::kUsage) << body;
}

TEST(Fields, NestedDeeperThanSixteenLevelsAreRefusedBeforeTheyAreParsed) {
  const auto nested = [](size_t lists) {
    return R"({"x\"[": "[[[[[[[[[[[[[[[[[[\\", "n": )" + std::string(lists, '[') + std::string(lists, ']') + "}";
  };
  EXPECT_TRUE(Fields::of_body("test", nested(15)));
  for (const std::string& body : {nested(16), nested(500'000), std::string(500'000, '['), "]]" + nested(16)})
    EXPECT_EQ(Fields::of_body("test", body).error().reason, "the body is nested deeper than 16 levels");
}

TEST(Fields, HaveTheTypesAsked) {
  auto fields = Fields::of_body("test", R"({"n": 5, "s": "text", "f": true, "b": "0aFF"})");
  ASSERT_TRUE(fields);
  EXPECT_EQ(fields->number("n"), 5U);
  EXPECT_EQ(fields->text("s"), "text");
  EXPECT_EQ(fields->flag("f"), true);
  EXPECT_EQ(fields->bytes("b"), (std::vector{std::byte{0x0a}, std::byte{0xff}}));
  EXPECT_EQ(fields->number("absent"), std::nullopt);
  EXPECT_TRUE(fields->finish());
}

TEST(Fields, OfAnotherTypeAreErrors) {
  for (const char* body : {R"({"n": "5"})", R"({"n": -1})", R"({"n": 1.0})", R"({"n": 11})", R"({"n": null})",
                           R"({"n": 18446744073709551616})"}) {
    auto fields = Fields::of_body("test", body);
    ASSERT_TRUE(fields);
    EXPECT_EQ(fields->number("n", 0, 10), std::nullopt);
    EXPECT_EQ(fields->finish().error().reason, "\"n\" must be a whole number from 0 to 10") << body;
  }
}

TEST(Fields, ThatNobodyTookAreErrorsQuotedOnOneLine) {
  auto fields = Fields::of_body("test", R"({"line\nbreak": 1})");
  ASSERT_TRUE(fields);
  EXPECT_EQ(fields->finish().error().message(), "test: unknown field \"line?break\"");
}

TEST(Fields, ThatAreMissingAreNamed) {
  auto fields = Fields::of_body("test", "{}");
  ASSERT_TRUE(fields);
  fields->require("address", fields->text("address").has_value());
  fields->require("length", fields->number("length").has_value());
  EXPECT_EQ(fields->finish().error().reason, "\"address\" is missing");
}

TEST(Fields, OfAQueryAreDecimalNumbersGivenOnce) {
  ApiRequest request;
  request.query = {{"cpu", "3"}};
  EXPECT_EQ(Fields::of_query("test", request).number("cpu"), 3U);
  for (const char* text : {"", "x", "-1", "0x3", "3 ", "99999999999999999999"}) {
    request.query = {{"cpu", text}};
    EXPECT_EQ(Fields::of_query("test", request).number("cpu"), std::nullopt) << text;
  }
  request.query = {{"cpu", "3"}, {"cpu", "4"}};
  EXPECT_FALSE(Fields::of_query("test", request).finish());
}

TEST(Fields, ListsAreBoundedAndHoldObjects) {
  for (const char* body : {R"({"l": []})", R"({"l": [1]})", R"({"l": {}})", R"({"l": [{},{},{}]})", "{}"}) {
    auto fields = Fields::of_body("test", body);
    ASSERT_TRUE(fields);
    EXPECT_TRUE(fields->objects("l", 2).empty()) << body;
    EXPECT_FALSE(fields->finish()) << body;
  }
}

TEST(Hex, IsTheBytesAndBack) {
  EXPECT_EQ(hex_of(std::vector{std::byte{0x00}, std::byte{0xa5}}), "00a5");
  EXPECT_EQ(bytes_of_hex("00A5"), (std::vector{std::byte{0x00}, std::byte{0xa5}}));
  EXPECT_EQ(bytes_of_hex("0"), std::nullopt);
  EXPECT_EQ(bytes_of_hex("0g"), std::nullopt);
  EXPECT_EQ(bytes_of_hex(" 0"), std::nullopt);
}

} // namespace
} // namespace stopvisor::vmm
