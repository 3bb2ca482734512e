// SPDX-License-Identifier: Apache-2.0
// What the command prints: text and documents to stdout, one line an error to stderr.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "vmm/error.h"

namespace stopvisor::tools {

void print_text(std::string_view text); // to stdout
void print_note(std::string_view line); // "stopvisor: line" to stderr

// Prints `error` to stderr under the verb's name, and as the one document of --json.
// RETURNS: the exit status.
int print_error(const vmm::Error& error, std::string_view verb, bool json);

// Flushes stdout. RETURNS: `status`, or 1 where stdout could not be written and `status` is 0.
int finish_output(int status, std::string_view verb);

// "256 MiB", "1.5 GiB", "640 KiB", "12 bytes".
[[nodiscard]] std::string human_size(uint64_t bytes);
// "85 µs", "12.3 ms", "4.0 s", "2 h 05 min".
[[nodiscard]] std::string human_duration(std::chrono::nanoseconds duration);

// Rows as aligned columns, two spaces between. The first row is the heading; columns named in
// `right` (by index) are aligned to the right.
[[nodiscard]] std::string table(const std::vector<std::vector<std::string>>& rows, std::span<const size_t> right);

// Offset, sixteen bytes in hexadecimal, and as ASCII, a line each.
[[nodiscard]] std::string hexdump(std::span<const std::byte> bytes);

} // namespace stopvisor::tools
