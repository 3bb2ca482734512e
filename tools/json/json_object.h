// SPDX-License-Identifier: Apache-2.0
// Reads a JSON document strictly: the first thing that is wrong is the error, with the place it was found at.
//
// A patch file is written by hand and changes a production kernel, so that nothing in it may be ignored: a field
// nobody knows is a check somebody believes in, and of a field given twice JSON libraries keep the last. A
// snapshot's manifest may come from anywhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace stopvisor {

// The first error of a document: "writes[2].expect" and what is wrong with it.
struct JsonFault {
  std::string where;
  std::string reason;
};

// RETURNS: a fault where the text is no JSON, is nested deeper than 16 levels, or a field is given twice.
[[nodiscard]] std::expected<nlohmann::json, JsonFault> parse_strictly(std::string_view text);

// One object of a document. Take each field that may be there, then finish(): fields that nobody took are faults.
// The first fault of all objects that share `fault` wins; values taken after it are not to be used. A field that
// nobody knows goes before one of the same object that is not there: it is most likely that one, misspelt.
class JsonObject {
public:
  // `value` must outlive the object. Anything but an object is a fault.
  JsonObject(const nlohmann::json& value, std::string where, std::optional<JsonFault>& fault);

  [[nodiscard]] bool has(const char* name) const;
  // Those without `optional` in their name are faults where they are missing.
  std::string text(const char* name, size_t most);
  std::string optional_text(const char* name, size_t most);
  // A JSON number, or a string of 0x and hexadecimal digits.
  uint64_t number(const char* name, uint64_t least, uint64_t most);
  bool flag(const char* name);
  // Hexadecimal digits, two a byte; spaces between bytes are allowed.
  std::vector<std::byte> bytes(const char* name, size_t most);
  std::vector<std::byte> optional_bytes(const char* name, size_t most);
  std::vector<std::string> optional_texts(const char* name, size_t most);
  // An object, or a list of them.
  [[nodiscard]] std::optional<JsonObject> optional_object(const char* name);
  [[nodiscard]] std::vector<JsonObject> optional_objects(const char* name, size_t most);

  void wrong(const char* name, std::string reason);
  void finish();
  [[nodiscard]] std::string where(const char* name) const;

private:
  const nlohmann::json* take(const char* name, bool required);

  const nlohmann::json* value_;
  std::string where_;
  std::optional<JsonFault>& fault_;
  std::set<std::string, std::less<>> taken_;
  bool misses_a_field_ = false; // fault_ is this object's, of a field that is not there
};

} // namespace stopvisor
