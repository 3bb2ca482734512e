// SPDX-License-Identifier: Apache-2.0
// Where the members of a kernel's structures lie, from the type information it carries (CONFIG_DEBUG_INFO_BTF).
//
// A small reader of our own (ADR 11): it takes bytes a guest wrote, and needs names and offsets alone.
// The format: Linux, Documentation/bpf/btf.rst.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace stopvisor::vmm {

class Btf {
public:
  // A member, counted from the beginning of the structure that was asked for.
  struct Member {
    uint64_t offset = 0;                // bytes
    std::optional<uint64_t> size_bytes; // where the type has one
    bool operator==(const Member&) const = default;
  };

  // `bytes` must outlive the object. CONTEXT: any thread, does not block; the time is linear in the bytes.
  // RETURNS: what is wrong, in words.
  [[nodiscard]] static std::expected<Btf, std::string> read(std::span<const std::byte> bytes);

  [[nodiscard]] size_t types() const noexcept { return types_.size(); }
  // A member of a structure or union by its name, also inside members that have none. Nothing where there is no
  // such structure or member, or it is a bit field.
  [[nodiscard]] std::optional<Member> member(std::string_view structure, std::string_view name) const;
  [[nodiscard]] std::optional<uint64_t> size_of_variable(std::string_view name) const;

private:
  struct Type {
    uint32_t name;
    uint32_t info;
    uint32_t size_or_type;
    uint32_t extra; // offset of what follows, in section_
  };
  [[nodiscard]] std::optional<std::string> read_types();
  [[nodiscard]] bool name_is(uint32_t offset, std::string_view name) const;
  [[nodiscard]] const Type* type(uint32_t id) const;
  [[nodiscard]] const Type* named(std::string_view name, uint32_t kind_a, uint32_t kind_b) const;
  [[nodiscard]] std::optional<uint64_t> size_of(uint32_t id, int depth) const;
  [[nodiscard]] std::optional<Member> find(const Type& structure, std::string_view name, int depth,
                                           uint32_t& steps) const;

  std::span<const std::byte> section_; // the types
  std::span<const std::byte> strings_;
  std::vector<Type> types_; // that of number 1 first
};

} // namespace stopvisor::vmm
