// SPDX-License-Identifier: Apache-2.0
#include "tools/stopvisor/output.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace stopvisor::tools {
namespace {

constexpr size_t kBytesOfLine = 16;

// UTF-8 aware enough for our own texts: continuation bytes take no column.
size_t columns(std::string_view text) {
  return size_t(std::ranges::count_if(text, [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

} // namespace

void print_text(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
}

void print_note(std::string_view line) {
  const std::string text = "stopvisor: " + std::string(line) + "\n";
  std::fwrite(text.data(), 1, text.size(), stderr);
}

int print_error(const vmm::Error& error, std::string_view verb, bool json) {
  vmm::Error shown = error;
  if (shown.operation.empty())
    shown.operation = verb;
  else if (!verb.empty() && !shown.operation.starts_with(verb))
    shown.operation = std::string(verb) + ": " + shown.operation;
  print_note(shown.operation.empty() ? shown.reason : shown.message());
  if (json) {
    const nlohmann::ordered_json document = {{"error",
                                              {{"operation", shown.operation},
                                               {"object", shown.object},
                                               {"reason", shown.reason},
                                               {"status", int(shown.status)},
                                               {"message", shown.message()}}}};
    print_text(document.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  }
  return finish_output(int(shown.status), verb);
}

int finish_output(int status, std::string_view verb) {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0)
    return status;
  const int error = errno;
  print_note(std::string(verb) + ": standard output: " + std::strerror(error)); // NOLINT(concurrency-mt-unsafe)
  return status == 0 ? int(vmm::Status::kFailed) : status;
}

std::string human_size(uint64_t bytes) {
  static constexpr std::array kUnits{"bytes", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  double value = double(bytes);
  while (value >= 1024 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  const bool whole = value == double(uint64_t(value));
  return whole ? fmt::format("{:.0f} {}", value, kUnits[unit]) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string human_duration(std::chrono::nanoseconds duration) {
  const double ns = double(duration.count());
  if (ns < 1e6)
    return fmt::format("{:.0f} µs", ns / 1e3);
  if (ns < 1e9)
    return fmt::format("{:.1f} ms", ns / 1e6);
  if (ns < 60e9)
    return fmt::format("{:.1f} s", ns / 1e9);
  const long long minutes = std::chrono::duration_cast<std::chrono::minutes>(duration).count();
  if (minutes < 60)
    return fmt::format("{} min {:02} s", minutes, duration.count() / 1'000'000'000 % 60);
  return fmt::format("{} h {:02} min", minutes / 60, minutes % 60);
}

std::string table(const std::vector<std::vector<std::string>>& rows, std::span<const size_t> right) {
  std::vector<size_t> widths;
  for (const auto& row : rows)
    for (size_t i = 0; i < row.size(); ++i) {
      if (i == widths.size())
        widths.push_back(0);
      widths[i] = std::max(widths[i], columns(row[i]));
    }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string padding(widths[i] - columns(row[i]), ' ');
      const bool to_right = std::ranges::find(right, i) != right.end();
      line += (i == 0 ? "" : "  ") + (to_right ? padding + row[i] : row[i] + padding);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

std::string hexdump(std::span<const std::byte> bytes) {
  std::string text;
  for (size_t line = 0; line < bytes.size(); line += kBytesOfLine) {
    text += fmt::format("{:08x} ", line);
    std::string ascii;
    for (size_t i = 0; i < kBytesOfLine; ++i) {
      if (i == kBytesOfLine / 2)
        text += ' ';
      if (line + i >= bytes.size()) {
        text += "   ";
        continue;
      }
      const auto byte = std::to_integer<unsigned char>(bytes[line + i]);
      text += fmt::format(" {:02x}", byte);
      ascii += byte >= 0x20 && byte < 0x7f ? char(byte) : '.';
    }
    text += "  |" + ascii + "|\n";
  }
  return text;
}

} // namespace stopvisor::tools
