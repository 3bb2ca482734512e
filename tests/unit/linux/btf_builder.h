// SPDX-License-Identifier: Apache-2.0
// Writes type information (BTF) as pahole does, of the few kinds the tests need.
#pragma once

#include "tests/unit/linux/kallsyms_builder.h"

namespace stopvisor::vmm::testing {

class BtfBuilder {
public:
  struct Member {
    std::string name; // "": anonymous
    uint32_t type;
    uint32_t offset; // in bits; with widths: and the width in the top byte
  };

  // All return the new type's number.
  uint32_t add(uint32_t kind, std::string_view name, uint32_t size_or_type, uint32_t count = 0, bool flag = false) {
    append_number(types_, string(name));
    append_number(types_, count | kind << 24 | (flag ? 1U << 31 : 0));
    append_number(types_, size_or_type);
    return ++number_;
  }
  uint32_t integer(std::string_view name, uint32_t bytes) {
    const uint32_t number = add(1, name, bytes);
    append_number(types_, bytes * 8);
    return number;
  }
  uint32_t pointer(uint32_t to) { return add(2, "", to); }
  uint32_t array(uint32_t of, uint32_t count) {
    const uint32_t number = add(3, "", 0);
    append_number(types_, of);
    append_number(types_, of);
    append_number(types_, count);
    return number;
  }
  uint32_t structure(std::string_view name, uint32_t bytes, const std::vector<Member>& members,
                     bool widths = false) {
    const uint32_t number = add(4, name, bytes, static_cast<uint32_t>(members.size()), widths);
    for (const Member& member : members) {
      append_number(types_, string(member.name));
      append_number(types_, member.type);
      append_number(types_, member.offset);
    }
    return number;
  }
  uint32_t variable(std::string_view name, uint32_t type) {
    const uint32_t number = add(14, name, type);
    append_number(types_, uint32_t{1});
    return number;
  }

  [[nodiscard]] Buffer build() const {
    Buffer out;
    append_number(out, uint16_t{0xeb9f});
    append_number(out, uint16_t{1}); // version 1, no flags
    for (const size_t number : {size_t{24}, size_t{0}, types_.size(), types_.size(), strings_.size()})
      append_number(out, static_cast<uint32_t>(number));
    append(out, types_);
    append(out, strings_);
    return out;
  }

private:
  uint32_t string(std::string_view text) {
    if (text.empty())
      return 0;
    const auto at = static_cast<uint32_t>(strings_.size());
    const std::string copy(text);
    append(strings_, std::as_bytes(std::span(copy.c_str(), copy.size() + 1)));
    return at;
  }

  Buffer types_;
  Buffer strings_{std::byte{0}};
  uint32_t number_ = 0;
};

} // namespace stopvisor::vmm::testing
