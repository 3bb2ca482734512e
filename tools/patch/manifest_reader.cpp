// SPDX-License-Identifier: Apache-2.0
// Reads manifests: every field is checked, and the first fault is told with its place.
#include <array>
#include <limits>
#include <set>
#include <utility>

#include <nlohmann/json.hpp>

#include "tools/json/json_object.h"
#include "tools/patch/manifest.h"

namespace stopvisor::patch {
namespace {

using Code = Operation::Code;
constexpr uint64_t kAnyNumber = std::numeric_limits<uint64_t>::max();
constexpr size_t kMaxNames = 64;

// The largest number of `size` bytes.
constexpr uint64_t largest(uint64_t size) {
  return size >= 8 ? kAnyNumber : (uint64_t{1} << (size * 8)) - 1;
}

Place read_place(JsonObject& object, const char* name) {
  const std::string text = object.text(name, 2048);
  auto place = parse_place(text);
  if (!place) {
    object.wrong(name, place.error());
    return {};
  }
  return *std::move(place);
}

Bytes bytes_of(uint64_t value, size_t size) {
  Bytes bytes(size);
  for (size_t i = 0; i < size; ++i)
    bytes[i] = std::byte(value >> (8 * i));
  return bytes;
}

void read_operation(JsonObject& object, Write& write) {
  auto fields = object.optional_object("operation");
  if (!fields)
    return;
  static constexpr std::array kCodes{Code::kSet, Code::kAdd, Code::kAnd, Code::kOr, Code::kCas};
  const std::string name = fields->text("op", 16);
  bool known = false;
  for (const Code code : kCodes)
    if (name == name_of(code)) {
      write.operation.code = code;
      known = true;
    }
  if (!known)
    fields->wrong("op", "must be set, add, and, or, or cas");
  const auto size = fields->number("size", 1, 8);
  if (write.operation.code == Code::kCas) {
    write.expect = bytes_of(fields->number("from", 0, largest(size)), size);
    write.operation.value = fields->number("to", 0, largest(size));
  } else {
    write.operation.value = fields->number("value", 0, largest(size));
    if (write.expect.size() != size)
      fields->wrong("size", "is not that of \"expect\"");
  }
  fields->finish();
}

void read_function(JsonObject& object, Write& write) {
  auto fields = object.optional_object("function");
  if (!fields)
    return;
  FunctionExtent function;
  function.at = read_place(*fields, "at");
  function.size = fields->number("size", 1, kMaxFunctionBytes);
  fields->finish();
  if (write.kind != SiteKind::kCode)
    object.wrong("function", "is for writes of kind \"code\"");
  if (function.at.kind != write.at.kind || function.at.of != write.at.of)
    fields->wrong("at", "must be of the same address space as the write");
  write.function = std::move(function);
}

Write read_write(JsonObject& object) {
  Write write;
  write.at = read_place(object, "at");
  const std::string kind = object.text("kind", 16);
  if (kind != "code" && kind != "data")
    object.wrong("kind", "must be code or data");
  write.kind = kind == "code" ? SiteKind::kCode : SiteKind::kData;
  write.note = object.optional_text("note", 256);
  const bool typed = object.has("operation");
  const bool plain = object.has("bytes");
  if (typed == plain)
    object.wrong("bytes", typed ? "and \"operation\" exclude each other" : "or \"operation\" is missing");
  write.expect = object.optional_bytes("expect", kMaxSiteBytes);
  const bool own_expect = object.has("expect");
  if (plain)
    write.operation.bytes = object.bytes("bytes", kMaxSiteBytes);
  read_operation(object, write);
  if (write.operation.code == Code::kCas && own_expect)
    object.wrong("expect", "is what \"from\" of a cas says");
  if (write.operation.code != Code::kCas && !own_expect)
    object.wrong("expect", "is missing");
  if (plain && write.operation.bytes.size() != write.expect.size())
    object.wrong("bytes", "are " + std::to_string(write.operation.bytes.size()) + ", and " +
                              std::to_string(write.expect.size()) + " are expected there; must be as many");
  write.mask = object.optional_bytes("mask", kMaxSiteBytes);
  if (object.has("mask") && write.mask.size() != write.expect.size())
    object.wrong("mask", "must be as long as \"expect\"");
  read_function(object, write);
  object.finish();
  if (write.at.value > kAnyNumber - write.size())
    object.wrong("at", "runs past the end of the address space");
  return write;
}

Predicate read_predicate(JsonObject& object) {
  using enum Comparison;
  static constexpr std::array kAll{kEqual, kNotEqual, kLess, kLessOrEqual, kGreater, kGreaterOrEqual, kMask};
  Predicate predicate;
  predicate.at = read_place(object, "at");
  predicate.size = static_cast<unsigned>(object.number("size", 1, 8));
  const std::string comparison = object.text("is", 16);
  bool known = false;
  for (const Comparison one : kAll)
    if (comparison == name_of(one)) {
      predicate.comparison = one;
      known = true;
    }
  if (!known)
    object.wrong("is", "must be eq, ne, lt, le, gt, ge or mask");
  predicate.value = object.number("value", 0, largest(predicate.size));
  if (predicate.comparison == kMask)
    predicate.mask = object.number("mask", 0, largest(predicate.size));
  else if (object.has("mask"))
    object.wrong("mask", "is for \"is\": \"mask\"");
  object.finish();
  return predicate;
}

Target read_target(JsonObject& object) {
  Target target;
  auto fields = object.optional_object("target");
  if (!fields) {
    object.wrong("target", "is missing");
    return target;
  }
  const int given = int(fields->has("any")) + int(fields->has("build_id")) + int(fields->has("banner"));
  if (given != 1)
    object.wrong("target", "must have one of build_id, banner, and any");
  if (fields->has("build_id")) {
    target.kind = Target::Kind::kBuildId;
    target.build_id = fields->bytes("build_id", 64);
  } else if (fields->has("banner")) {
    target.kind = Target::Kind::kBanner;
    target.banner = fields->text("banner", 512);
  } else if (!fields->flag("any")) {
    fields->wrong("any", "must be true");
  }
  fields->finish();
  return target;
}

std::vector<std::string> read_names(JsonObject& object, const char* name) {
  auto names = object.optional_texts(name, kMaxNames);
  std::set<std::string> seen;
  for (const std::string& one : names)
    if (!is_patch_name(one) || !seen.insert(one).second)
      object.wrong(name, "must be names of patches, each once");
  return names;
}

Manifest read_fields(JsonObject& object) {
  Manifest manifest;
  if (const uint64_t format = object.number("format", 0, UINT64_MAX); format != 1)
    object.wrong("format", std::to_string(format) + " is not known to this version, which reads format 1");
  manifest.name = object.text("name", 64);
  if (!is_patch_name(manifest.name))
    object.wrong("name", "must be letters, digits, and . _ - after the first");
  manifest.version = object.text("version", 64);
  manifest.description = object.optional_text("description", 4096);
  manifest.target = read_target(object);
  manifest.depends = read_names(object, "depends");
  manifest.conflicts = read_names(object, "conflicts");
  manifest.replaces = read_names(object, "replaces");
  size_t total = 0;
  for (JsonObject& write : object.optional_objects("writes", kMaxWrites)) {
    manifest.writes.push_back(read_write(write));
    total += manifest.writes.back().size();
  }
  if (manifest.writes.empty())
    object.wrong("writes", "must be a list of 1 to " + std::to_string(kMaxWrites) + " objects");
  if (total > kMaxBytes)
    object.wrong("writes", "are of " + std::to_string(total) + " bytes together; at most " +
                               std::to_string(kMaxBytes) + " may be written in one stop");
  for (JsonObject& predicate : object.optional_objects("require", kMaxPredicates))
    manifest.require.push_back(read_predicate(predicate));
  for (JsonObject& predicate : object.optional_objects("ensure", kMaxPredicates))
    manifest.ensure.push_back(read_predicate(predicate));
  object.finish();
  return manifest;
}

} // namespace

std::expected<Manifest, vmm::Error> read_manifest(std::string_view operation, std::string_view text) {
  const auto refuse = [&](const JsonFault& fault) {
    return std::unexpected(vmm::Error{std::string(operation),
                                      "manifest" + (fault.where.empty() ? "" : " " + fault.where), fault.reason,
                                      vmm::Status::kUsage});
  };
  if (text.size() > kMaxManifestBytes)
    return refuse({"", "is longer than " + std::to_string(kMaxManifestBytes) + " bytes"});
  const auto document = parse_strictly(text);
  if (!document)
    return refuse(document.error());
  std::optional<JsonFault> fault;
  JsonObject object(*document, "", fault);
  Manifest manifest = read_fields(object);
  if (fault)
    return refuse(*fault);
  return manifest;
}

} // namespace stopvisor::patch
