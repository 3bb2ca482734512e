// SPDX-License-Identifier: Apache-2.0
// Manifests: what is read, what is refused and by which words, and that a stranger's bytes do no harm.
#include <gtest/gtest.h>

#include <random>

#include "tools/patch/manifest.h"

namespace stopvisor::patch {
namespace {

const char* const kWhole = R"({
  "format": 1, "name": "fix-1.a", "version": "2026.1", "description": "what it is for",
  "target": {"build_id": "00 11 22ff"},
  "depends": ["base"], "conflicts": ["other"], "replaces": ["fix-0"],
  "writes": [
    {"at": "sym:tcp_v4_rcv+0x41", "kind": "code", "expect": "0f 1f 44 00 00", "bytes": "e8 12 34 56 00", "note": "a call"},
    {"at": "gpa:0x1000", "kind": "data", "expect": "00ff", "mask": "f00f", "bytes": "0102"},
    {"at": "gva:0x2000@cr3=0x5000", "kind": "data", "expect": "00000000",
     "operation": {"op": "add", "size": 4, "value": "0x10"}},
    {"at": "gva:0x3000@pid=7", "kind": "data", "operation": {"op": "cas", "size": 8, "from": 1, "to": "0xffffffffffffffff"}},
    {"at": "gva:0x4000@1", "kind": "code", "expect": "90", "bytes": "c3", "function": {"at": "gva:0x3ff0@1", "size": 64}}],
  "require": [{"at": "sym:jiffies", "size": 8, "is": "gt", "value": 5}],
  "ensure": [{"at": "gva:0x10@kernel", "size": 1, "is": "mask", "mask": "0x0f", "value": 3}]
})";

std::string message_of(std::string_view text) {
  const auto manifest = read_manifest("patch apply", text);
  return manifest ? "" : manifest.error().message();
}

// kWhole with a piece of it replaced.
std::string with(std::string_view old, std::string_view fresh) {
  std::string text = kWhole;
  const size_t at = text.find(old);
  EXPECT_NE(at, std::string::npos) << old;
  return text.replace(at, old.size(), fresh);
}

TEST(Manifest, IsReadWhole) {
  const auto manifest = read_manifest("patch apply", kWhole);
  ASSERT_TRUE(manifest.has_value()) << manifest.error().message();
  EXPECT_EQ(manifest->name, "fix-1.a");
  EXPECT_EQ(manifest->version, "2026.1");
  EXPECT_EQ(manifest->target.kind, Target::Kind::kBuildId);
  EXPECT_EQ(manifest->target.build_id.size(), 4U);
  EXPECT_EQ(manifest->replaces, std::vector<std::string>{"fix-0"});
  ASSERT_EQ(manifest->writes.size(), 5U);
  EXPECT_EQ(manifest->writes[0].at.symbol, "tcp_v4_rcv");
  EXPECT_EQ(manifest->writes[0].at.value, 0x41U);
  EXPECT_EQ(manifest->writes[2].at.kind, Place::Kind::kCr3);
  EXPECT_EQ(manifest->writes[2].operation.code, Operation::Code::kAdd);
  EXPECT_EQ(manifest->writes[3].expect, (Bytes{std::byte{1}, {}, {}, {}, {}, {}, {}, {}}));
  EXPECT_EQ(manifest->writes[3].operation.value, UINT64_MAX);
  EXPECT_EQ(manifest->writes[4].function->size, 64U);
  EXPECT_EQ(manifest->require[0].comparison, Comparison::kGreater);
  EXPECT_EQ(manifest->ensure[0].mask, 0xfU);
}

TEST(Manifest, IsTheSameWhenWrittenAndReadAgain) {
  const auto once = read_manifest("", kWhole);
  ASSERT_TRUE(once.has_value());
  const std::string text = write_manifest(*once);
  const auto twice = read_manifest("", text);
  ASSERT_TRUE(twice.has_value()) << twice.error().message() << text;
  EXPECT_EQ(write_manifest(*twice), text);
}

TEST(Manifest, NamesTheFirstFaultAndItsPlace) {
  const struct {
    std::string text;
    const char* message;
  } cases[] = {
      {"", "manifest: is not valid JSON"},
      {"[]", "manifest: must be an object"},
      {"{} x", "manifest: is not valid JSON: line 1, byte 4"},
      {"{\n  \"format\": 1,\n}", "manifest: is not valid JSON: line 3, byte 1"},
      {R"({"format": 1e999})", "manifest: is not valid JSON: it has a number that is too large"},
      {std::string(100, '['), "manifest: is nested deeper than 16 levels"},
      {"{}", "manifest format: is missing"},
      {with("\"format\": 1", "\"format\": 2"),
       "manifest format: 2 is not known to this version, which reads format 1"},
      {with("\"name\": \"fix-1.a\"", "\"name\": \"a b\""), "manifest name: must be letters"},
      {with("\"name\": \"fix-1.a\"", "\"name\": \"\""), "manifest name: must not be empty"},
      {with("\"version\": \"2026.1\"", "\"version\": 3"), "manifest version: must be a string"},
      {with("\"version\": \"2026.1\",", ""), "manifest version: is missing"},
      {with("what it is for", "a\\u0007b"), "manifest description: has control characters"},
      {with("\"depends\"", "\"depend\""),
       "manifest \"depend\": is no field that is known; did you mean \"depends\"?"},
      {with("\"expect\": \"0f", "\"exspect\": \"0f"),
       "manifest writes[0].\"exspect\": is no field that is known; did you mean \"expect\"?"},
      {with("\"kind\": \"data\", \"operation\"", "\"knd\": \"data\", \"operation\""),
       "manifest writes[3].\"knd\": is no field that is known; did you mean \"kind\"?"},
      {with("\"target\"", "\"for\""), "manifest \"for\": is no field that is known"},
      {with("\"from\": 1", "\"frm\": 1"),
       "manifest writes[3].operation.\"frm\": is no field that is known; did you mean \"from\"?"},
      {with("\"depends\": [\"base\"]", "\"depends\": [\"a\", \"a\"]"),
       "manifest depends: must be names of patches, each once"},
      {with("\"depends\": [\"base\"]", "\"depends\": [1]"),
       "manifest depends: must be a list of at most 64 strings"},
      {with("\"name\": \"fix-1.a\",", "\"name\": \"a\", \"name\": \"b\","), "manifest \"name\": is given twice"},
      {with("{\"build_id\": \"00 11 22ff\"}", "{}"), "manifest target: must have one of build_id, banner, and any"},
      {with("{\"build_id\": \"00 11 22ff\"}", "{\"any\": false}"), "manifest target.any: must be true"},
      {with("00 11 22ff", "0 011"), "manifest target.build_id: must be hexadecimal digits"},
      {with("sym:tcp_v4_rcv+0x41", "0x41"), "manifest writes[0].at: not an address"},
      {with("sym:tcp_v4_rcv+0x41", "gva:0x1@cr3=0x123"), "manifest writes[0].at: cr3= must be"},
      {with("gva:0x3000@pid=7", "gva:0x3000@pid=x"), "manifest writes[3].at: pid= must be"},
      {with("gpa:0x1000", "gpa:0xffffffffffffffff"), "manifest writes[1].at: runs past the end"},
      {with("\"kind\": \"code\"", "\"kind\": \"text\""), "manifest writes[0].kind: must be code or data"},
      {with("\"expect\": \"0f 1f 44 00 00\",", ""), "manifest writes[0].expect: is missing"},
      {with("\"bytes\": \"e8 12 34 56 00\"", "\"bytes\": \"e8\""),
       "manifest writes[0].bytes: are 1, and 5 are expected there"},
      {with("\"bytes\": \"e8 12 34 56 00\", ", ""), "manifest writes[0].bytes: or \"operation\" is missing"},
      {with("\"mask\": \"f00f\"", "\"mask\": \"f0\""), "manifest writes[1].mask: must be as long as"},
      {with("\"op\": \"add\"", "\"op\": \"sub\""), "manifest writes[2].operation.op: must be set, add"},
      {with("\"size\": 4", "\"size\": 9"),
       "manifest writes[2].operation.size: must be a whole number from 1 to 0x8"},
      {with("\"size\": 4", "\"size\": 2"), "manifest writes[2].operation.size: is not that of \"expect\""},
      {with("\"size\": 4, \"value\": \"0x10\"", "\"size\": 4, \"value\": \"0x100000000\""),
       "manifest writes[2].operation.value: must be a whole number"},
      {with("\"value\": \"0x10\"", "\"value\": -1"), "manifest writes[2].operation.value: must be a whole number"},
      {with("\"operation\": {\"op\": \"cas\"", "\"expect\": \"00\", \"operation\": {\"op\": \"cas\""),
       "manifest writes[3].expect: is what \"from\" of a cas says"},
      {with("\"function\": {\"at\": \"gva:0x3ff0@1\"", "\"function\": {\"at\": \"gva:0x3ff0\""),
       "manifest writes[4].function.at: must be of the same address space"},
      {with("\"is\": \"gt\"", "\"is\": \">\""), "manifest require[0].is: must be eq, ne"},
      {with("\"is\": \"gt\"", "\"is\": \"gt\", \"mask\": 1"), "manifest require[0].mask: is for \"is\": \"mask\""},
      {with("\"mask\": \"0x0f\", ", ""), "manifest ensure[0].mask: is missing"},
      {with("\"size\": 1, \"is\"", "\"size\": 1, \"more\": 1, \"is\""), "manifest ensure[0].\"more\": is no field"},
  };
  for (const auto& one : cases) {
    const std::string message = message_of(one.text);
    EXPECT_TRUE(message.starts_with(std::string("patch apply: ") + one.message))
        << one.message << "\n but: " << message;
  }
}

TEST(Manifest, RefusesMoreThanOneStopMayWrite) {
  std::string writes;
  for (int i = 0; i < 140; ++i)
    writes += std::string(i == 0 ? "" : ",") + R"({"at": "gpa:0x1000", "kind": "data", "expect": ")" +
              std::string(8192, '0') + R"(", "bytes": ")" + std::string(8192, '0') + "\"}";
  const std::string head = R"({"format": 1, "name": "a", "version": "1", "target": {"any": true}, "writes": [)";
  EXPECT_NE(message_of(head + writes + "]}").find("may be written in one stop"), std::string::npos);
  EXPECT_NE(message_of(head + "]}").find("writes: must be a list of 1 to 4096"), std::string::npos);
  EXPECT_NE(message_of(std::string(kMaxManifestBytes + 1, ' ')).find("is longer than"), std::string::npos);
}

TEST(Manifest, IsNoDangerWhateverItsBytesAre) {
  std::mt19937 random(20261123); // a seed of our own: the same bytes in every run
  const std::string whole = kWhole;
  size_t read = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string text = whole;
    for (unsigned changes = 1 + random() % 4; changes > 0; --changes) {
      const size_t at = random() % text.size();
      switch (random() % 4) {
      case 0:
        text[at] = static_cast<char>(random());
        break;
      case 1:
        text.erase(at, 1 + random() % 20);
        break;
      case 2:
        text.insert(at, whole.substr(random() % whole.size(), random() % 40));
        break;
      default:
        text[at] = "{}[]\",:0x19ae"[random() % 13];
        break;
      }
      if (text.empty())
        text = "{";
    }
    const auto manifest = read_manifest("fuzz", text);
    if (!manifest) {
      ASSERT_EQ(manifest.error().status, vmm::Status::kUsage);
      continue;
    }
    ++read;
    ASSERT_TRUE(read_manifest("fuzz", write_manifest(*manifest)).has_value()) << text;
  }
  EXPECT_GT(read, 0U);
  for (size_t length = 0; length < whole.size(); ++length)
    EXPECT_FALSE(read_manifest("fuzz", whole.substr(0, length)).has_value()) << length;
}

TEST(Operation, ChangesWordsAsItSays) {
  using Code = Operation::Code;
  const struct {
    Code code;
    uint64_t value;
    Bytes before, after;
  } cases[] = {
      {Code::kSet, 0x0102, {std::byte{9}, std::byte{9}}, {std::byte{2}, std::byte{1}}},
      {Code::kAdd, 1, {std::byte{0xff}, std::byte{0xff}}, {std::byte{0}, std::byte{0}}}, // wraps in its own size
      {Code::kAnd, 0xf0, {std::byte{0x3c}}, {std::byte{0x30}}},
      {Code::kOr, 0x81, {std::byte{0x3c}}, {std::byte{0xbd}}},
      {Code::kCas, 7, {std::byte{1}, {}, {}}, {std::byte{7}, {}, {}}},
  };
  for (const auto& one : cases) {
    Bytes after(one.before.size());
    transform({one.code, {}, one.value}, one.before, after);
    EXPECT_EQ(after, one.after) << name_of(one.code);
  }
}

TEST(Predicate, ComparesUnsignedWords) {
  const auto holds = [](Comparison comparison, uint64_t word, uint64_t value, uint64_t mask = 0) {
    return Predicate{{}, 8, comparison, value, mask}.holds_for(word);
  };
  EXPECT_TRUE(holds(Comparison::kGreater, UINT64_MAX, 1));
  EXPECT_FALSE(holds(Comparison::kLess, UINT64_MAX, 1));
  EXPECT_TRUE(holds(Comparison::kLessOrEqual, 1, 1));
  EXPECT_TRUE(holds(Comparison::kGreaterOrEqual, 1, 1));
  EXPECT_TRUE(holds(Comparison::kEqual, 1, 1));
  EXPECT_FALSE(holds(Comparison::kNotEqual, 1, 1));
  EXPECT_TRUE(holds(Comparison::kMask, 0xf3, 3, 0xf));
}

TEST(Place, IsSpelledAsItIsRead) {
  for (const char* text : {"gpa:0x1000", "gva:0x1000", "gva:0x1000@3", "gva:0x1000@cr3=0x2000", "gva:0x1000@kernel",
                           "gva:0x1000@pid=12", "sym:foo", "sym:foo+0x10", "sym:foo+0x10@2"}) {
    const auto place = parse_place(text);
    ASSERT_TRUE(place.has_value()) << text;
    EXPECT_EQ(to_string(*place), text);
  }
  for (const char* text : {"", "gpa:0x1@kernel", "gva:0x1@", "gva:0x1@cr3=", "gva:0x1@cr3=0x8000000000000000",
                           "gva:0x1@pid=0", "gva:0x1@pid=-1", "gva:1@kernel", "sym:", "sym:foo+1"})
    EXPECT_FALSE(parse_place(text).has_value()) << text;
}

} // namespace
} // namespace stopvisor::patch
