// SPDX-License-Identifier: Apache-2.0
#include "tools/migrate/texts.h"

#include <cstdint>

namespace stopvisor::migrate {
namespace {

struct Lead {
  size_t size;    // of the character, in bytes; 0: none begins so
  uint32_t least; // what takes that many: a smaller one is spelled too long
  uint32_t bits;  // its own
};

Lead lead_of(unsigned char byte) noexcept {
  if (byte < 0x80)
    return {1, 0, byte};
  if (byte >= 0xc2 && byte < 0xe0)
    return {2, 0x80, byte & 0x1fU};
  if (byte >= 0xe0 && byte < 0xf0)
    return {3, 0x800, byte & 0xfU};
  if (byte >= 0xf0 && byte < 0xf5)
    return {4, 0x1'0000, byte & 7U};
  return {0, 0, 0};
}

bool is_printable(uint32_t character) noexcept {
  const bool control = character < ' ' || (character >= 0x7f && character < 0xa0);
  const bool surrogate = character >= 0xd800 && character < 0xe000;
  // Line and paragraph separator, and what turns the direction of the text around it.
  const bool turns = (character >= 0x2028 && character <= 0x202e) || (character >= 0x2066 && character <= 0x2069);
  return !control && !surrogate && !turns && character < 0x11'0000;
}

// Bytes of the printable character that `text` begins with; 0: there is none.
size_t printable_front(std::string_view text) noexcept {
  const Lead lead = lead_of(static_cast<unsigned char>(text.front()));
  if (lead.size == 0 || lead.size > text.size())
    return 0;
  uint32_t character = lead.bits;
  for (size_t at = 1; at < lead.size; ++at) {
    const auto byte = static_cast<unsigned char>(text[at]);
    if ((byte & 0xc0U) != 0x80)
      return 0;
    character = character << 6 | (byte & 0x3fU);
  }
  return character >= lead.least && is_printable(character) ? lead.size : 0;
}

} // namespace

std::string printable_text(std::string_view text, size_t most) {
  std::string printable;
  while (!text.empty()) {
    const size_t size = printable_front(text);
    if (printable.size() + (size == 0 ? 1 : size) > most)
      break;
    if (size == 0)
      printable += '?';
    else
      printable += text.substr(0, size);
    text.remove_prefix(size == 0 ? 1 : size);
  }
  return printable;
}

} // namespace stopvisor::migrate
