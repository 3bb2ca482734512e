// SPDX-License-Identifier: Apache-2.0
#include "tools/stopvisor/documents.h"

#include <cstdlib>
#include <filesystem>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tools/stopvisor/output.h"
#include "vmm/units.h"

namespace stopvisor::tools {
namespace {

using Json = nlohmann::ordered_json;

std::expected<std::chrono::milliseconds, vmm::Error>
parse_bounded(const std::string& operation, std::string_view text, std::chrono::milliseconds longest) {
  const auto duration = vmm::parse_duration(operation, text);
  if (!duration)
    return std::unexpected(duration.error());
  const auto rounded = std::chrono::ceil<std::chrono::milliseconds>(*duration);
  if (rounded.count() < 1 || rounded > longest)
    return std::unexpected(vmm::Error{operation, std::string(text),
                                      "must be more than 0 and at most " + human_duration(longest),
                                      vmm::Status::kUsage});
  return rounded;
}

} // namespace

void print_vm_document(std::string_view vm, std::string_view answer) {
  Json document = {{"vm", std::string(vm)}};
  const Json fields = Json::parse(answer, nullptr, false);
  if (fields.is_object())
    document.update(fields);
  print_text(document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

std::expected<std::chrono::milliseconds, vmm::Error>
parse_timeout(std::string_view verb, const std::optional<std::string>& text, std::chrono::milliseconds otherwise) {
  constexpr std::chrono::hours kLongest(1);
  if (text)
    return parse_bounded(std::string(verb) + ": --timeout", *text, kLongest);
  const char* const set = std::getenv("STOPVISOR_TIMEOUT"); // NOLINT(concurrency-mt-unsafe): nobody changes it
  if (set == nullptr || *set == '\0')
    return otherwise;
  return parse_bounded(std::string(verb) + ": STOPVISOR_TIMEOUT", set, kLongest);
}

std::expected<std::chrono::milliseconds, vmm::Error> parse_max(std::string_view verb, std::string_view text) {
  return parse_bounded(std::string(verb) + ": --max", text, std::chrono::hours(24));
}

std::string absolute_path(const std::string& path) {
  std::error_code error;
  const auto absolute = std::filesystem::absolute(path, error);
  return error ? path : absolute.string();
}

std::string query_value(std::string_view text) {
  std::string value;
  for (const char c : text) {
    const bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                       std::string_view("-._~/").contains(c);
    value += plain ? std::string(1, c) : fmt::format("%{:02X}", static_cast<unsigned char>(c));
  }
  return value;
}

vmm::Error strange_answer(std::string_view verb, std::string_view vm) {
  return {std::string(verb), std::string(vm), "its answer is not understood: another version of stopvisor?",
          vmm::Status::kFailed};
}

} // namespace stopvisor::tools
