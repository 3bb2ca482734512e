// SPDX-License-Identifier: Apache-2.0
// A patch as its author wrote it down: what must be there, what is to be there, and what it goes with.
//
// The format is docs/reference/patch-format.md, its schema docs/reference/patch.schema.json.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tools/patch/place.h"
#include "vmm/error.h"

namespace stopvisor::patch {

using Bytes = std::vector<std::byte>;

inline constexpr size_t kMaxWrites = 4096;
inline constexpr size_t kMaxPredicates = 1024;
inline constexpr size_t kMaxSiteBytes = 4096;
inline constexpr size_t kMaxBytes = size_t{512} << 10;        // of all writes together
inline constexpr size_t kMaxFunctionBytes = size_t{64} << 10; // that is decoded for one write
inline constexpr size_t kMaxManifestBytes = size_t{4} << 20;

enum class SiteKind { kCode, kData };

// What a write does to the bytes that are there: new bytes, or arithmetic on 1 to 8 of them (little endian).
struct Operation {
  enum class Code { kBytes, kSet, kAdd, kAnd, kOr, kCas };
  Code code = Code::kBytes;
  Bytes bytes;        // kBytes
  uint64_t value = 0; // of the others; kCas: the new value
};

// The code around a write: where its instructions begin, and what may branch into it.
struct FunctionExtent {
  Place at;
  uint64_t size = 0;
};

struct Write {
  Place at;
  SiteKind kind = SiteKind::kData;
  Bytes expect; // as long as what is written
  Bytes mask;   // empty: every bit of expect counts
  Operation operation;
  std::optional<FunctionExtent> function;
  std::string note;

  [[nodiscard]] size_t size() const noexcept { return expect.size(); }
};

enum class Comparison { kEqual, kNotEqual, kLess, kLessOrEqual, kGreater, kGreaterOrEqual, kMask };

// A condition on an unsigned little-endian word of the guest; kMask: (word & mask) == value.
struct Predicate {
  Place at;
  unsigned size = 8; // bytes, 1 to 8
  Comparison comparison = Comparison::kEqual;
  uint64_t value = 0;
  uint64_t mask = ~0ULL;

  [[nodiscard]] bool holds_for(uint64_t word) const noexcept;
};

// Which guest it is for.
struct Target {
  enum class Kind { kAny, kBuildId, kBanner };
  Kind kind = Kind::kAny; // nothing but the expected bytes tells
  Bytes build_id;
  std::string banner;
};

struct Manifest {
  std::string name;
  std::string version; // the patch's own
  std::string description;
  Target target;
  std::vector<std::string> depends, conflicts, replaces; // names of patches
  std::vector<Write> writes;
  std::vector<Predicate> require, ensure; // before, and after the writes
};

// Reads a manifest strictly. `operation` is what errors are reported under. CONTEXT: any thread, does not block.
// RETURNS: kUsage: the first thing that is wrong and where ("writes[2].expect"): no JSON, an unknown field or one
// that is given twice, a wrong type, a number or a length out of its range.
[[nodiscard]] std::expected<Manifest, vmm::Error> read_manifest(std::string_view operation, std::string_view text);
// The JSON of a manifest, as read_manifest() takes it.
[[nodiscard]] std::string write_manifest(const Manifest& manifest);

// The bytes a write leaves, where `before` was there. `after` is as long. Does not allocate.
void transform(const Operation& operation, std::span<const std::byte> before, std::span<std::byte> after) noexcept;
// Whether `found` is what the write expects.
[[nodiscard]] bool is_expected(const Write& write, std::span<const std::byte> found) noexcept;

[[nodiscard]] const char* name_of(SiteKind kind) noexcept;
[[nodiscard]] const char* name_of(Comparison comparison) noexcept;
[[nodiscard]] const char* name_of(Operation::Code code) noexcept;
// Whether `name` can be a patch's: letters, digits, and . _ - after the first, 64 at most.
[[nodiscard]] bool is_patch_name(std::string_view name) noexcept;

} // namespace stopvisor::patch
