// SPDX-License-Identifier: Apache-2.0
// Writes kernel symbol tables as Linux' build does, in each of the orders it has had.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace stopvisor::vmm::testing {

using Buffer = std::vector<std::byte>;

inline void append(Buffer& to, std::span<const std::byte> bytes) {
  to.insert(to.end(), bytes.begin(), bytes.end());
}
template <typename T>
void append_number(Buffer& to, T value) {
  append(to, std::as_bytes(std::span(&value, 1)));
}
inline void align_to_8(Buffer& to) {
  to.resize((to.size() + 7) / 8 * 8);
}

class KallsymsBuilder {
public:
  enum class Order {
    kOffsetsFirst,          // Linux 6.1
    kOffsetsFirstWithOrder, // 6.2 and 6.3: the order by name behind the markers
    kOffsetsLast,           // 6.4 on
  };

  Order order = Order::kOffsetsFirst;
  bool absolute_percpu = true;

  // `address` below 2^63 is a per-CPU variable's.
  void add(uint64_t address, char type, std::string_view name) {
    symbols_.push_back({address, type, std::string(name)});
  }

  // All tables, to be placed at a multiple of 8. `base`: the address they are relative to.
  [[nodiscard]] Buffer build(uint64_t base) {
    std::ranges::sort(symbols_, {}, [](const Entry& entry) { return std::pair(entry.address, entry.name); });
    Buffer out(64, std::byte{0xee}); // what lies before
    if (order != Order::kOffsetsLast)
      append_offsets(out, base);
    append_number(out, static_cast<uint32_t>(symbols_.size()));
    align_to_8(out);
    append_names(out);
    if (order == Order::kOffsetsFirstWithOrder)
      append(out, Buffer(symbols_.size() * 3, std::byte{0x11}));
    align_to_8(out);
    append_tokens(out);
    if (order == Order::kOffsetsLast)
      append_offsets(out, base);
    append(out, Buffer(64, std::byte{0xee}));
    return out;
  }

private:
  struct Entry {
    uint64_t address;
    char type;
    std::string name;
  };

  static std::string token(unsigned number) {
    if ((number > ' ' && number < 0x7f) || number == 0x1b) // escape, which no real table has
      return {static_cast<char>(number)};
    if (number == 1)
      return "linux_";
    if (number == 2)
      return "_start";
    return "~" + std::to_string(number); // no symbol has it
  }

  void append_offsets(Buffer& out, uint64_t base) const {
    for (const Entry& entry : symbols_) {
      const bool percpu = entry.address >> 63 == 0;
      const auto distance = static_cast<int64_t>(entry.address - base);
      append_number(out, static_cast<int32_t>(percpu            ? int64_t(entry.address)
                                              : absolute_percpu ? -1 - distance
                                                                : distance));
    }
    align_to_8(out);
    append_number(out, base);
  }

  void append_names(Buffer& out) const {
    Buffer names;
    std::vector<uint32_t> markers;
    for (size_t i = 0; i < symbols_.size(); ++i) {
      if (i % 256 == 0)
        markers.push_back(static_cast<uint32_t>(names.size()));
      append(names, encoded(symbols_[i].type + symbols_[i].name));
    }
    append(out, names);
    align_to_8(out);
    append(out, std::as_bytes(std::span(markers)));
    align_to_8(out);
  }

  static Buffer encoded(std::string_view text) {
    Buffer tokens;
    while (!text.empty()) {
      size_t used = 1;
      auto number = unsigned{static_cast<unsigned char>(text[0])};
      for (const unsigned longer : {1U, 2U})
        if (text.starts_with(token(longer))) {
          number = longer;
          used = token(longer).size();
        }
      tokens.push_back(static_cast<std::byte>(number));
      text.remove_prefix(used);
    }
    Buffer name;
    if (tokens.size() >= 0x80) {
      name.push_back(static_cast<std::byte>((tokens.size() & 0x7f) | 0x80));
      name.push_back(static_cast<std::byte>(tokens.size() >> 7));
    } else {
      name.push_back(static_cast<std::byte>(tokens.size()));
    }
    append(name, tokens);
    return name;
  }

  static void append_tokens(Buffer& out) {
    std::vector<uint16_t> index;
    Buffer table;
    for (unsigned i = 0; i < 256; ++i) {
      index.push_back(static_cast<uint16_t>(table.size()));
      const std::string text = token(i);
      append(table, std::as_bytes(std::span(text.c_str(), text.size() + 1)));
    }
    append(out, table);
    align_to_8(out);
    append(out, std::as_bytes(std::span(index)));
  }

  std::vector<Entry> symbols_;
};

} // namespace stopvisor::vmm::testing
