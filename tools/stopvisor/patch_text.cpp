// SPDX-License-Identifier: Apache-2.0
#include "tools/stopvisor/patch_text.h"

#include <array>
#include <chrono>
#include <ctime>

#include <nlohmann/json.hpp>

#include "tools/stopvisor/output.h"

namespace stopvisor::tools {
namespace {

using Json = nlohmann::ordered_json;
constexpr size_t kShownDigits = 32;

std::string shortened(const std::string& digits) {
  return digits.size() <= kShownDigits ? digits : digits.substr(0, kShownDigits) + "...";
}

std::string duration_text(const Json& nanoseconds) {
  return human_duration(std::chrono::nanoseconds(nanoseconds.get<int64_t>()));
}

std::string cost_text(const Json& cost) {
  std::string text = cost.at("stop").is_null()
                         ? "the guest was held by others as well"
                         : "the guest was held for " + duration_text(cost.at("stop").at("hold_ns"));
  text += ", of which ours were " + duration_text(cost.at("work_ns"));
  const auto attempts = cost.at("attempts").get<uint64_t>();
  return text + (attempts > 1 ? ", at attempt " + std::to_string(attempts) : "");
}

std::string time_text(const Json& milliseconds) {
  const std::time_t seconds = milliseconds.get<int64_t>() / 1000;
  std::tm parts{};
  std::array<char, 32> text{};
  if (::localtime_r(&seconds, &parts) == nullptr ||
      std::strftime(text.data(), text.size(), "%Y-%m-%d %H:%M:%S", &parts) == 0)
    return "?";
  return text.data();
}

size_t bytes_of(const Json& sites) {
  size_t bytes = 0;
  for (const Json& site : sites)
    bytes += site.at("after").get_ref<const std::string&>().size() / 2;
  return bytes;
}

std::string joined(const Json& names) {
  std::string text;
  for (const Json& name : names)
    text += (text.empty() ? "" : ", ") + name.get<std::string>();
  return text;
}

} // namespace

std::string patch_change_text(const Json& answer, const std::string& action) {
  const std::string patch = answer.at("patch").get<std::string>();
  if (action == "confirm")
    return patch + ": confirmed\n";
  const Json& sites = answer.at("sites");
  const std::string amount = std::to_string(sites.size()) + (sites.size() == 1 ? " site, " : " sites, ") +
                             std::to_string(bytes_of(sites)) + " bytes";
  std::string text;
  if (action == "check") {
    for (const Json& site : sites)
      text += site.at("site").get<std::string>() + ", " + site.at("kind").get<std::string>() + " at " +
              site.at("address").get<std::string>() + ": " + shortened(site.at("before").get<std::string>()) +
              " -> " + shortened(site.at("after").get<std::string>()) + "\n";
    text += patch + ": nothing speaks against it: " + amount;
  } else if (action == "verify") {
    text += (patch.empty() ? "all patches" : patch) + ": as written: " + amount;
  } else {
    text += patch + ": " + (action == "revert" ? "reverted: " : "applied: ") + amount;
    if (!answer.at("replaced").empty())
      text += ", in the place of " + joined(answer.at("replaced"));
  }
  text += "; " + cost_text(answer.at("cost")) + "\n";
  for (const Json& reason : answer.at("overruled"))
    text +=
        "overruled: " + reason.at("check").get<std::string>() + ": " + reason.at("text").get<std::string>() + "\n";
  return text;
}

std::string patch_list_text(const Json& answer, const std::string& /*action*/) {
  std::vector<std::vector<std::string>> rows{{"PATCH", "VERSION", "STATE", "SITES", "SINCE", "BY", "FORCED"}};
  std::string problems;
  for (const Json& patch : answer.at("patches")) {
    std::string state = patch.at("state").get<std::string>();
    if (patch.contains("reverts_in_ms"))
      state +=
          ", reverts in " + human_duration(std::chrono::milliseconds(patch.at("reverts_in_ms").get<int64_t>()));
    rows.push_back({patch.at("patch").get<std::string>(), patch.at("version").get<std::string>(), state,
                    patch.at("sites").dump(), time_text(patch.at("at_ms")),
                    "uid " + patch.at("by").at("uid").dump(), joined(patch.at("forced"))});
    if (patch.contains("revert_problem"))
      problems += patch.at("patch").get<std::string>() +
                  ": not reverted: " + patch.at("revert_problem").get<std::string>() + "\n";
  }
  if (rows.size() == 1)
    return "no patches are applied\n";
  return table(rows, std::array<size_t, 1>{3}) + problems;
}

std::string patch_record_text(const Json& answer, const std::string& /*action*/) {
  std::string text = answer.at("patch").get<std::string>() + " " + answer.at("version").get<std::string>() + ", " +
                     answer.at("state").get<std::string>() + " since " + time_text(answer.at("at_ms")) +
                     " by uid " + answer.at("by").at("uid").dump() + " (pid " + answer.at("by").at("pid").dump() +
                     "); " + cost_text(answer.at("cost")) + "\n";
  for (const Json& reason : answer.at("overruled"))
    text +=
        "overruled: " + reason.at("check").get<std::string>() + ": " + reason.at("text").get<std::string>() + "\n";
  for (const Json& site : answer.at("sites"))
    text += "site " + site.at("site").dump() + " " + site.at("at").get<std::string>() + ", " +
            site.at("kind").get<std::string>() + " at " + site.at("address").get<std::string>() + ": " +
            shortened(site.at("before").get<std::string>()) + " -> " +
            shortened(site.at("written").get<std::string>()) + "\n";
  return text;
}

} // namespace stopvisor::tools
