// SPDX-License-Identifier: Apache-2.0
// Reads the fields of a request strictly: the first thing that is wrong is the error, and nothing is ignored.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "vmm/control/request.h"
#include "vmm/error.h"

namespace stopvisor::vmm {

inline constexpr std::chrono::milliseconds kDefaultTimeout{5000};
inline constexpr std::chrono::milliseconds kLongestTimeout{3'600'000};

// An object's fields. Take each that may be there, then ask finish(): a type that does not fit, a number out
// of its range, a field that is missing or that nobody took are errors then; values taken before are not to be
// used.
class Fields {
public:
  // The fields of a body, which is a JSON object or empty. RETURNS: kUsage for anything else, and where lists and
  // objects are nested deeper than 16 levels.
  [[nodiscard]] static std::expected<Fields, Error> of_body(std::string_view operation, std::string_view body);
  // The fields of a query string; numbers are decimal.
  [[nodiscard]] static Fields of_query(std::string_view operation, const ApiRequest& request);

  ~Fields();
  Fields(Fields&&) noexcept;
  Fields& operator=(Fields&&) = delete;

  [[nodiscard]] std::optional<uint64_t> number(const char* name, uint64_t least = 0,
                                               uint64_t most = std::numeric_limits<uint64_t>::max());
  [[nodiscard]] std::optional<std::string> text(const char* name);
  [[nodiscard]] std::optional<bool> flag(const char* name);
  // Hexadecimal digits, two a byte.
  [[nodiscard]] std::optional<std::vector<std::byte>> bytes(const char* name);
  // A non-empty list of objects, at most `most` of them. Moves them out: once a name.
  [[nodiscard]] std::vector<Fields> objects(const char* name, size_t most);
  // now + timeout_ms, or + kDefaultTimeout.
  [[nodiscard]] std::chrono::steady_clock::time_point deadline();

  // Says that `name` must be there.
  void require(const char* name, bool present);
  // RETURNS: kUsage, the first thing that was wrong.
  [[nodiscard]] std::expected<void, Error> finish();

private:
  struct Parts;
  explicit Fields(std::unique_ptr<Parts> parts);
  void wrong(const std::string& reason);
  std::unique_ptr<Parts> parts_;
};

// Bytes as hexadecimal digits and back; nothing where `text` is anything else.
[[nodiscard]] std::string hex_of(std::span<const std::byte> bytes);
[[nodiscard]] std::optional<std::vector<std::byte>> bytes_of_hex(std::string_view text);

} // namespace stopvisor::vmm
