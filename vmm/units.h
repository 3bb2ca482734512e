// SPDX-License-Identifier: Apache-2.0
// Sizes, durations and hexadecimal numbers as users write and read them.
//
// Every verb takes the same spellings ("256M", "200ms", "0x1000"), so that they are parsed here once, with
// overflow an error and not a small number.
#pragma once

#include <chrono>
#include <cstdint>
#include <expected>
#include <optional>
#include <string>
#include <string_view>

#include "vmm/error.h"

namespace stopvisor::vmm {

// Parses a whole number of bytes: decimal digits, then nothing, K, M, G or T (powers of 1024; also k, m, g, t). Up
// to six digits after a point are taken where the result is whole: "1.5G". `operation` is what the number is for,
// as in "run: --memory". CONTEXT: any thread, does not block. RETURNS: bytes; kUsage where the text is empty, is no
// number, has another unit, or exceeds 64 bits.
[[nodiscard]] std::expected<uint64_t, Error> parse_size(std::string_view operation, std::string_view text);

// Parses a duration: a number as above, then us, ms or s (to the nanosecond). The unit is required: a bare number
// is a mistake waiting. CONTEXT: any thread, does not block. RETURNS: as parse_size; durations end at about 292
// years.
[[nodiscard]] std::expected<std::chrono::nanoseconds, Error> parse_duration(std::string_view operation,
                                                                            std::string_view text);

// Parses "0x" and 1 to 16 hexadecimal digits, nothing around them. RETURNS: nothing where that is not so.
[[nodiscard]] std::optional<uint64_t> parse_hex(std::string_view text);

// "0x1000", no leading zeros.
[[nodiscard]] std::string to_hex(uint64_t value);

} // namespace stopvisor::vmm
