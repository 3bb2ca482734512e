// SPDX-License-Identifier: Apache-2.0
#include "vmm/linux/btf.h"

#include <cstring>

#include "vmm/linux/little_endian.h"

namespace stopvisor::vmm {
namespace {

constexpr uint16_t kMagic = 0xeb9f;
// As the format has them, without padding.
struct Header {
  uint16_t magic;
  uint8_t version;
  uint8_t flags;
  uint32_t bytes; // of the header
  uint32_t types_at;
  uint32_t types_bytes;
  uint32_t strings_at;
  uint32_t strings_bytes;
};
struct RawType {
  uint32_t name;
  uint32_t info;
  uint32_t size_or_type;
};
struct RawMember {
  uint32_t name;
  uint32_t type;
  uint32_t position;
};
struct RawArray {
  uint32_t element;
  uint32_t index;
  uint32_t count;
};
static_assert(sizeof(Header) == 24 && sizeof(RawType) == 12 && sizeof(RawMember) == 12 && sizeof(RawArray) == 12);

constexpr int kDeepest = 16;            // members in members, typedefs of typedefs
constexpr uint32_t kMostSteps = 65'536; // members looked at for one name

enum Kind : uint32_t {
  kInt = 1,
  kPointer,
  kArray,
  kStruct,
  kUnion,
  kEnum,
  kForward,
  kTypedef,
  kVolatile,
  kConst,
  kRestrict,
  kFunction,
  kPrototype,
  kVariable,
  kSection,
  kFloat,
  kDeclTag,
  kTypeTag,
  kEnum64,
};

constexpr uint32_t kind_of(uint32_t info) {
  return (info >> 24) & 0x1f;
}
constexpr uint32_t count_of(uint32_t info) {
  return info & 0xffff;
}

// Bytes that follow a type; nothing for a kind that is newer than this file, as its length is not known.
std::optional<uint64_t> extra_bytes(uint32_t info) {
  const uint64_t count = count_of(info);
  switch (kind_of(info)) {
  case kInt:
  case kVariable:
  case kDeclTag:
    return 4;
  case kArray:
    return 12;
  case kStruct:
  case kUnion:
  case kSection:
  case kEnum64:
    return count * 12;
  case kEnum:
  case kPrototype:
    return count * 8;
  case kPointer:
  case kForward:
  case kTypedef:
  case kVolatile:
  case kConst:
  case kRestrict:
  case kFunction:
  case kFloat:
  case kTypeTag:
    return 0;
  default:
    return std::nullopt;
  }
}

} // namespace

std::expected<Btf, std::string> Btf::read(std::span<const std::byte> bytes) {
  const auto header = take<Header>(bytes, 0);
  if (!header || header->magic != kMagic || header->version != 1 || header->bytes < sizeof(Header))
    return std::unexpected("it does not begin with BTF's header, version 1");
  Btf btf;
  btf.section_ = slice(bytes, uint64_t{header->bytes} + header->types_at, header->types_bytes);
  btf.strings_ = slice(bytes, uint64_t{header->bytes} + header->strings_at, header->strings_bytes);
  if (btf.section_.empty() || btf.strings_.empty())
    return std::unexpected("a section of it lies outside of it, or is empty");
  if (btf.strings_.back() != std::byte{0})
    return std::unexpected("its last string has no end");
  if (auto wrong = btf.read_types())
    return std::unexpected(*std::move(wrong));
  return btf;
}

std::optional<std::string> Btf::read_types() {
  for (uint64_t at = 0; at < section_.size();) {
    const auto type = take<RawType>(section_, at);
    const std::string number = std::to_string(types_.size() + 1);
    if (!type)
      return "type " + number + " is cut off";
    const auto extra = extra_bytes(type->info);
    if (!extra)
      return "type " + number + " is of the unknown kind " + std::to_string(kind_of(type->info));
    at += sizeof(RawType);
    if (*extra > section_.size() - at)
      return "type " + number + " is cut off";
    types_.push_back({type->name, type->info, type->size_or_type, static_cast<uint32_t>(at)});
    at += *extra;
  }
  return std::nullopt;
}

bool Btf::name_is(uint32_t offset, std::string_view name) const {
  const auto bytes = slice(strings_, offset, name.size() + 1);
  return !bytes.empty() && std::memcmp(bytes.data(), name.data(), name.size()) == 0 && bytes.back() == std::byte{0};
}

const Btf::Type* Btf::type(uint32_t id) const {
  return id == 0 || id > types_.size() ? nullptr : &types_[id - 1];
}

const Btf::Type* Btf::named(std::string_view name, uint32_t kind_a, uint32_t kind_b) const {
  for (const Type& type : types_)
    if ((kind_of(type.info) == kind_a || kind_of(type.info) == kind_b) && name_is(type.name, name))
      return &type;
  return nullptr;
}

std::optional<uint64_t> Btf::size_of(uint32_t id, int depth) const {
  const Type* const found = type(id);
  if (found == nullptr || depth > kDeepest)
    return std::nullopt;
  switch (kind_of(found->info)) {
  case kInt:
  case kStruct:
  case kUnion:
  case kEnum:
  case kEnum64:
  case kFloat:
    return found->size_or_type;
  case kPointer:
    return 8;
  case kTypedef:
  case kVolatile:
  case kConst:
  case kRestrict:
  case kTypeTag:
  case kVariable:
    return size_of(found->size_or_type, depth + 1);
  case kArray: {
    const auto array = take<RawArray>(section_, found->extra);
    const auto size = array ? size_of(array->element, depth + 1) : std::nullopt;
    if (!size || *size > UINT32_MAX)
      return std::nullopt;
    return *size * array->count;
  }
  default:
    return std::nullopt;
  }
}

// Without kind_flag a member's offset is in bits; with it the top byte is a bit field's width.
std::optional<Btf::Member> Btf::find(const Type& structure, std::string_view name, int depth,
                                     uint32_t& steps) const {
  if (depth > kDeepest)
    return std::nullopt;
  const bool has_widths = structure.info >> 31 != 0;
  for (uint32_t i = 0; i < count_of(structure.info) && steps < kMostSteps; ++i, ++steps) {
    const auto raw = take<RawMember>(section_, structure.extra + uint64_t{i} * sizeof(RawMember));
    if (!raw)
      return std::nullopt;
    const uint32_t bits = has_widths ? raw->position & 0xff'ffff : raw->position;
    const bool is_field = (has_widths && raw->position >> 24 != 0) || bits % 8 != 0;
    if (name_is(raw->name, name))
      return is_field ? std::nullopt : std::optional(Member{bits / 8, size_of(raw->type, 0)});
    const Type* const inner = name_is(raw->name, "") ? type(raw->type) : nullptr;
    if (inner == nullptr || (kind_of(inner->info) != kStruct && kind_of(inner->info) != kUnion))
      continue;
    if (auto found = find(*inner, name, depth + 1, steps)) {
      found->offset += bits / 8;
      return found;
    }
  }
  return std::nullopt;
}

std::optional<Btf::Member> Btf::member(std::string_view structure, std::string_view name) const {
  const Type* const found = named(structure, kStruct, kUnion);
  uint32_t steps = 0;
  return found == nullptr ? std::nullopt : find(*found, name, 0, steps);
}

std::optional<uint64_t> Btf::size_of_variable(std::string_view name) const {
  const Type* const found = named(name, kVariable, kVariable);
  return found == nullptr ? std::nullopt : size_of(found->size_or_type, 0);
}

} // namespace stopvisor::vmm
