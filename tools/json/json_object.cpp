// SPDX-License-Identifier: Apache-2.0
#include "tools/json/json_object.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include <nlohmann/json.hpp>

#include "vmm/control/fields.h"
#include "vmm/did_you_mean.h"
#include "vmm/units.h"

namespace stopvisor {
namespace {

using Json = nlohmann::json;

constexpr int kDeepest = 16;
constexpr size_t kQuotedBytes = 60;

// A stranger's text, made fit to be quoted on one line.
std::string quote_text(std::string_view text) {
  std::string quote = "\"";
  for (const char c : text.substr(0, kQuotedBytes))
    quote += c >= ' ' && c != '"' && c != 0x7f ? c : '?';
  return quote + (text.size() > kQuotedBytes ? "...\"" : "\"");
}

// Where text that was found not to be JSON ceases to be: by reading it once more, for the place is only thrown.
std::string place_of_fault(std::string_view text) {
  try {
    [[maybe_unused]] const Json parsed = Json::parse(text);
  } catch (const Json::parse_error& error) {
    const std::string_view before = text.substr(0, error.byte > 0 ? error.byte - 1 : 0);
    const size_t line_begin = before.rfind('\n') + 1; // npos + 1 is 0: the first line
    return ": line " + std::to_string(std::ranges::count(before, '\n') + 1) + ", byte " +
           std::to_string(before.size() - line_begin + 1);
  } catch (const Json::exception&) { // a number beyond all that there are: 1e999
    return ": it has a number that is too large";
  }
  return {};
}

} // namespace

std::expected<Json, JsonFault> parse_strictly(std::string_view text) {
  bool too_deep = false;
  std::string twice;
  std::vector<std::set<std::string, std::less<>>> names;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    too_deep = too_deep || depth > kDeepest;
    if (event == Json::parse_event_t::object_start)
      names.emplace_back();
    else if (event == Json::parse_event_t::object_end)
      names.pop_back();
    else if (event == Json::parse_event_t::key && !names.back().insert(parsed.get<std::string>()).second &&
             twice.empty())
      twice = quote_text(parsed.get_ref<const std::string&>());
    return !too_deep; // what lies deeper is dropped
  };
  Json document = Json::parse(text, watch, false);
  if (too_deep)
    return std::unexpected(JsonFault{"", "is nested deeper than " + std::to_string(kDeepest) + " levels"});
  if (document.is_discarded())
    return std::unexpected(JsonFault{"", "is not valid JSON" + place_of_fault(text)});
  if (!twice.empty())
    return std::unexpected(JsonFault{twice, "is given twice"});
  return document;
}

JsonObject::JsonObject(const Json& value, std::string where, std::optional<JsonFault>& fault)
    : value_(&value), where_(std::move(where)), fault_(fault) {
  if (!value.is_object() && !fault_)
    fault_ = JsonFault{where_, "must be an object"};
}

std::string JsonObject::where(const char* name) const {
  return where_.empty() ? name : where_ + "." + name;
}

void JsonObject::wrong(const char* name, std::string reason) {
  if (fault_)
    return;
  fault_ = JsonFault{where(name), std::move(reason)};
  misses_a_field_ = !has(name);
}

bool JsonObject::has(const char* name) const {
  return value_->is_object() && value_->contains(name);
}

const Json* JsonObject::take(const char* name, bool required) {
  taken_.insert(name);
  if (has(name))
    return &value_->at(name);
  if (required)
    wrong(name, "is missing");
  return nullptr;
}

std::string JsonObject::text(const char* name, size_t most) {
  take(name, true);
  std::string value = optional_text(name, most);
  if (value.empty())
    wrong(name, "must not be empty");
  return value;
}

std::string JsonObject::optional_text(const char* name, size_t most) {
  const Json* const value = take(name, false);
  if (value == nullptr)
    return {};
  if (!value->is_string()) {
    wrong(name, "must be a string");
    return {};
  }
  const auto& text = value->get_ref<const std::string&>();
  if (text.size() > most) {
    wrong(name, "is longer than " + std::to_string(most) + " bytes");
    return {};
  }
  if (!std::ranges::all_of(text, [](char c) { return static_cast<unsigned char>(c) >= ' ' && c != 0x7f; })) {
    wrong(name, "has control characters in it");
    return {};
  }
  return text;
}

uint64_t JsonObject::number(const char* name, uint64_t least, uint64_t most) {
  const Json* const value = take(name, true);
  if (value == nullptr)
    return least;
  std::optional<uint64_t> number;
  if (value->is_number_unsigned())
    number = value->get<uint64_t>();
  else if (value->is_string())
    number = vmm::parse_hex(value->get_ref<const std::string&>());
  if (!number || *number < least || *number > most) {
    wrong(name, "must be a whole number from " + std::to_string(least) + " to " + vmm::to_hex(most) +
                    ", or such a one as \"0x...\"");
    return least;
  }
  return *number;
}

bool JsonObject::flag(const char* name) {
  const Json* const value = take(name, true);
  if (value == nullptr)
    return false;
  if (!value->is_boolean()) {
    wrong(name, "must be true or false");
    return false;
  }
  return value->get<bool>();
}

std::vector<std::byte> JsonObject::bytes(const char* name, size_t most) {
  take(name, true);
  auto bytes = optional_bytes(name, most);
  if (bytes.empty())
    wrong(name, "must be hexadecimal digits, two a byte");
  return bytes;
}

std::vector<std::byte> JsonObject::optional_bytes(const char* name, size_t most) {
  const Json* const value = take(name, false);
  if (value == nullptr)
    return {};
  if (!value->is_string()) {
    wrong(name, "must be a string of hexadecimal digits, two a byte");
    return {};
  }
  std::string digits;
  const auto& text = value->get_ref<const std::string&>();
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(' ', at), text.size());
    if ((end - at) % 2 != 0)
      break; // a space inside a byte: too few digits are left
    digits.append(text, at, end - at);
    at = end + 1;
  }
  const auto is_space = [](char c) { return c == ' '; };
  const bool whole = digits.size() + size_t(std::ranges::count_if(text, is_space)) == text.size();
  auto bytes = whole ? vmm::bytes_of_hex(digits) : std::nullopt;
  if (!bytes || bytes->empty() || bytes->size() > most) {
    wrong(name, "must be hexadecimal digits, two a byte, of 1 to " + std::to_string(most) + " bytes");
    return {};
  }
  return *std::move(bytes);
}

std::vector<std::string> JsonObject::optional_texts(const char* name, size_t most) {
  const Json* const value = take(name, false);
  if (value == nullptr)
    return {};
  std::vector<std::string> list;
  if (value->is_array() && value->size() <= most)
    for (const Json& element : *value)
      if (element.is_string())
        list.push_back(element.get<std::string>());
  if (!value->is_array() || list.size() != value->size())
    wrong(name, "must be a list of at most " + std::to_string(most) + " strings");
  return list;
}

std::optional<JsonObject> JsonObject::optional_object(const char* name) {
  const Json* const value = take(name, false);
  if (value == nullptr)
    return std::nullopt;
  return JsonObject(*value, where(name), fault_);
}

std::vector<JsonObject> JsonObject::optional_objects(const char* name, size_t most) {
  const Json* const value = take(name, false);
  std::vector<JsonObject> list;
  if (value == nullptr)
    return list;
  if (!value->is_array() || value->size() > most) {
    wrong(name, "must be a list of at most " + std::to_string(most) + " objects");
    return list;
  }
  for (size_t i = 0; i < value->size(); ++i)
    list.emplace_back((*value)[i], where(name) + "[" + std::to_string(i) + "]", fault_);
  return list;
}

void JsonObject::finish() {
  if (!value_->is_object() || (fault_ && !misses_a_field_))
    return;
  for (const auto& [name, value] : value_->items()) {
    if (taken_.contains(name))
      continue;
    std::vector<std::string> free; // fields that are known, and not there
    std::ranges::copy_if(taken_, std::back_inserter(free), [&](const auto& one) { return !has(one.c_str()); });
    const std::string meant = name.size() <= kQuotedBytes ? vmm::did_you_mean(name, free) : "";
    fault_ = JsonFault{where_.empty() ? quote_text(name) : where_ + "." + quote_text(name),
                       "is no field that is known" + (meant.empty() ? "" : "; did you mean \"" + meant + "\"?")};
    return;
  }
}

} // namespace stopvisor
