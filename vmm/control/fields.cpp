// SPDX-License-Identifier: Apache-2.0
#include "vmm/control/fields.h"

#include <charconv>
#include <set>
#include <span>

#include <nlohmann/json.hpp>

namespace stopvisor::vmm {
namespace {

using Json = nlohmann::json;

constexpr size_t kQuotedBytes = 60;
constexpr size_t kDeepest = 16; // lists and objects in each other; a request needs three

int digit_of(char c) {
  if (c >= '0' && c <= '9')
    return c - '0';
  if (c >= 'a' && c <= 'f')
    return c - 'a' + 10;
  if (c >= 'A' && c <= 'F')
    return c - 'A' + 10;
  return -1;
}

// A client's own text, made fit to be quoted on one line.
std::string quote_text(std::string_view text) {
  std::string quote = "\"";
  for (const char c : text.substr(0, kQuotedBytes))
    quote += c >= ' ' && c != '"' && c != 0x7f ? c : '?';
  return quote + (text.size() > kQuotedBytes ? "...\"" : "\"");
}

// Whether lists and objects of `body` are nested deeper than kDeepest. Looked at before parsing, because what is
// parsed is a tree, and a client must not choose how deep we recurse. Up to the first error of a body its strings
// are those the parser sees, and the parser stops there.
bool too_deep(std::string_view body) {
  size_t depth = 0;
  bool in_string = false;
  for (size_t at = 0; at < body.size(); ++at) {
    const char c = body[at];
    if (c == '"')
      in_string = !in_string;
    else if (in_string)
      at += c == '\\' ? 1 : 0; // and what it escapes
    else if (c == '[' || c == '{')
      ++depth;
    else if ((c == ']' || c == '}') && depth > 0)
      --depth;
    if (depth > kDeepest)
      return true;
  }
  return false;
}

} // namespace

struct Fields::Parts {
  std::string operation;
  Json document;
  bool from_query = false;
  std::set<std::string, std::less<>> taken;
  std::optional<std::string> error;

  Json* take(const char* name) {
    taken.insert(name);
    const auto found = document.find(name);
    return found == document.end() ? nullptr : &*found;
  }
};

Fields::Fields(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Fields::~Fields() = default;
Fields::Fields(Fields&&) noexcept = default;

std::expected<Fields, Error> Fields::of_body(std::string_view operation, std::string_view body) {
  if (too_deep(body))
    return std::unexpected(Error{std::string(operation), "",
                                 "the body is nested deeper than " + std::to_string(kDeepest) + " levels",
                                 Status::kUsage});
  auto parts = std::make_unique<Parts>();
  parts->operation = operation;
  parts->document = body.empty() ? Json::object() : Json::parse(body, nullptr, false);
  if (parts->document.is_discarded())
    return std::unexpected(Error{std::string(operation), "", "the body is not valid JSON", Status::kUsage});
  if (!parts->document.is_object())
    return std::unexpected(Error{std::string(operation), "", "the body must be a JSON object", Status::kUsage});
  return Fields(std::move(parts));
}

Fields Fields::of_query(std::string_view operation, const ApiRequest& request) {
  auto parts = std::make_unique<Parts>();
  parts->operation = operation;
  parts->from_query = true;
  parts->document = Json::object();
  for (const auto& [name, value] : request.query)
    if (!parts->document.emplace(std::string(name), std::string(value)).second)
      parts->error = quote_text(name) + " is given twice";
  return Fields(std::move(parts));
}

void Fields::wrong(const std::string& reason) {
  if (!parts_->error)
    parts_->error = reason;
}

std::optional<uint64_t> Fields::number(const char* name, uint64_t least, uint64_t most) {
  const Json* value = parts_->take(name);
  if (value == nullptr)
    return std::nullopt;
  std::optional<uint64_t> number;
  if (parts_->from_query) {
    const auto& text = value->get_ref<const std::string&>();
    uint64_t parsed = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), parsed);
    if (error == std::errc{} && end == text.data() + text.size())
      number = parsed;
  } else if (value->is_number_unsigned()) {
    number = value->get<uint64_t>();
  }
  if (!number || *number < least || *number > most) {
    wrong(quote_text(name) + " must be a whole number" +
          (most == std::numeric_limits<uint64_t>::max()
               ? std::string()
               : " from " + std::to_string(least) + " to " + std::to_string(most)));
    return std::nullopt;
  }
  return number;
}

std::optional<std::string> Fields::text(const char* name) {
  const Json* value = parts_->take(name);
  if (value == nullptr)
    return std::nullopt;
  if (!value->is_string()) {
    wrong(quote_text(name) + " must be a string");
    return std::nullopt;
  }
  return value->get<std::string>();
}

std::optional<bool> Fields::flag(const char* name) {
  const Json* value = parts_->take(name);
  if (value == nullptr)
    return std::nullopt;
  if (!value->is_boolean()) {
    wrong(quote_text(name) + " must be true or false");
    return std::nullopt;
  }
  return value->get<bool>();
}

std::optional<std::vector<std::byte>> Fields::bytes(const char* name) {
  const std::optional<std::string> digits = text(name);
  if (!digits)
    return std::nullopt;
  std::optional<std::vector<std::byte>> bytes = bytes_of_hex(*digits);
  if (!bytes || bytes->empty()) {
    wrong(quote_text(name) + " must be hexadecimal digits, two a byte");
    return std::nullopt;
  }
  return bytes;
}

std::vector<Fields> Fields::objects(const char* name, size_t most) {
  Json* value = parts_->take(name);
  std::vector<Fields> list;
  if (value == nullptr || !value->is_array() || value->empty() || value->size() > most) {
    wrong(quote_text(name) + " must be a list of 1 to " + std::to_string(most) + " objects");
    return list;
  }
  for (Json& element : *value) {
    if (!element.is_object()) {
      wrong(quote_text(name) + " must be a list of objects");
      list.clear();
      return list;
    }
    auto parts = std::make_unique<Parts>();
    parts->operation = parts_->operation;
    parts->document = std::move(element);
    list.push_back(Fields(std::move(parts)));
  }
  return list;
}

std::chrono::steady_clock::time_point Fields::deadline() {
  const auto timeout = number("timeout_ms", 0, uint64_t(kLongestTimeout.count()));
  return std::chrono::steady_clock::now() + (timeout ? std::chrono::milliseconds(*timeout) : kDefaultTimeout);
}

void Fields::require(const char* name, bool present) {
  if (!present)
    wrong(quote_text(name) + " is missing");
}

std::expected<void, Error> Fields::finish() {
  for (const auto& [name, value] : parts_->document.items())
    if (!parts_->taken.contains(name))
      wrong("unknown field " + quote_text(name));
  if (parts_->error)
    return std::unexpected(Error{parts_->operation, "", *parts_->error, Status::kUsage});
  return {};
}

std::string hex_of(std::span<const std::byte> bytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  text.reserve(bytes.size() * 2);
  for (const std::byte byte : bytes) {
    text += kDigits[std::to_integer<unsigned>(byte) >> 4];
    text += kDigits[std::to_integer<unsigned>(byte) & 0xf];
  }
  return text;
}

std::optional<std::vector<std::byte>> bytes_of_hex(std::string_view text) {
  if (text.size() % 2 != 0)
    return std::nullopt;
  std::vector<std::byte> bytes;
  bytes.reserve(text.size() / 2);
  for (size_t i = 0; i < text.size(); i += 2) {
    const int high = digit_of(text[i]);
    const int low = digit_of(text[i + 1]);
    if (high < 0 || low < 0)
      return std::nullopt;
    bytes.push_back(std::byte(high * 16 + low));
  }
  return bytes;
}

} // namespace stopvisor::vmm
