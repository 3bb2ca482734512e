// SPDX-License-Identifier: Apache-2.0
// The command line's words: `name=value`, separated by blanks.
#include "guest/command_line.h"

namespace stopvisor::probe {
namespace {

struct Text {
  const char* data;
  uint32_t length;
};

bool equal(Text text, const char* word) {
  uint32_t i = 0;
  while (i < text.length && word[i] != 0 && text.data[i] == word[i])
    ++i;
  return i == text.length && word[i] == 0;
}

// Cuts `text` up to the first `separator`, which is left out, off its front.
Text cut(Text& text, char separator) {
  uint32_t length = 0;
  while (length < text.length && text.data[length] != separator)
    ++length;
  const Text front{text.data, length};
  const uint32_t used = length < text.length ? length + 1 : length;
  text = {text.data + used, text.length - used};
  return front;
}

// RETURNS false where `text` is no decimal number up to `max`.
bool number(Text text, uint64_t max, uint64_t& value) {
  if (text.length == 0 || text.length > 19)
    return false;
  uint64_t sum = 0;
  for (uint32_t i = 0; i < text.length; ++i) {
    if (text.data[i] < '0' || text.data[i] > '9')
      return false;
    sum = sum * 10 + static_cast<uint64_t>(text.data[i] - '0');
  }
  if (sum > max)
    return false;
  value = sum;
  return true;
}

template <typename T>
bool number_into(Text text, uint64_t max, uint64_t unit, T& target) {
  uint64_t value = 0;
  if (!number(text, max, value))
    return false;
  target = static_cast<T>(value * unit);
  return true;
}

bool scenario_mask(Text list, uint32_t& target) {
  constexpr const char* kNames[] = {"gap", "ledger", "code", "dirty", "io", "idle"}; // bit order of the ABI
  uint32_t mask = 0;
  while (list.length != 0) {
    const Text name = cut(list, ',');
    uint32_t bit = 0;
    while (bit < 6 && !equal(name, kNames[bit]))
      ++bit;
    if (bit == 6 && !equal(name, "none"))
      return false;
    if (bit < 6)
      mask |= 1u << bit;
  }
  target = mask;
  return true;
}

bool boot_fault(Text name, BootFault& target) {
  if (equal(name, "triple"))
    target = BootFault::kTriple;
  else if (equal(name, "ud"))
    target = BootFault::kUndefined;
  else if (equal(name, "crash"))
    target = BootFault::kCrash;
  else if (equal(name, "emulation"))
    target = BootFault::kEmulation;
  else
    return false;
  return true;
}

bool parse_word(Text word, Options& options) {
  constexpr uint64_t kMiB = uint64_t{1} << 20;
  constexpr uint64_t kMaxMib = uint64_t{1} << 24;
  Text value = word;
  const Text name = cut(value, '=');
  if (equal(name, "scenarios"))
    return scenario_mask(value, options.scenarios);
  if (equal(name, "cpus"))
    return number_into(value, kMaxCpus, 1, options.cpus);
  if (equal(name, "dirty_mib"))
    return number_into(value, kMaxMib, kMiB, options.dirty_bytes);
  if (equal(name, "dirty_rate_mib"))
    return number_into(value, kMaxMib, kMiB, options.dirty_rate);
  if (equal(name, "exit_after_slices"))
    return number_into(value, ~uint64_t{0}, 1, options.exit_after_slices);
  if (equal(name, "timer_hz"))
    return number_into(value, 10'000, 1, options.timer_hz);
  if (equal(name, "boot_fault"))
    return boot_fault(value, options.boot_fault);
  return false;
}

} // namespace

Options parse_command_line(const char* text, UnknownWord unknown) {
  Options options;
  uint32_t length = 0;
  while (text[length] != 0)
    ++length;
  for (Text rest{text, length}; rest.length != 0;) {
    const Text word = cut(rest, ' ');
    if (word.length != 0 && !parse_word(word, options))
      unknown(word.data, word.length);
  }
  return options;
}

} // namespace stopvisor::probe
