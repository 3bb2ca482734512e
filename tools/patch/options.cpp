// SPDX-License-Identifier: Apache-2.0
#include "tools/patch/options.h"

#include <string_view>

namespace stopvisor::patch {
namespace {

constexpr uint64_t kMostRetries = 10'000;
constexpr uint64_t kLongestHoldUs = 10'000'000;
constexpr uint64_t kLongestConfirmMs = 24ULL * 3600 * 1000;

// RETURNS: what is wrong, or nothing.
std::string read_forced(std::string_view names, CheckSet& forced) {
  while (!names.empty()) {
    const std::string_view name = names.substr(0, names.find(','));
    names.remove_prefix(std::min(name.size() + 1, names.size()));
    const auto check = check_named(name);
    if (!check || !may_be_forced(*check))
      return "of the checks these may be forced: " + forceable_names();
    forced.add(*check);
  }
  return {};
}

} // namespace

std::expected<Options, vmm::Error> read_options(const char* operation, vmm::Fields& fields, const vmm::Peer& peer,
                                                bool confirmable) {
  Options options;
  options.author = {peer.uid, peer.pid};
  options.deadline = fields.deadline();
  options.retries = static_cast<uint32_t>(fields.number("retries", 0, kMostRetries).value_or(0));
  options.stacks = fields.flag("stacks").value_or(false);
  options.symbols = fields.text("symbols").value_or("");
  if (const auto hold = fields.number("max_hold_us", 1, kLongestHoldUs))
    options.max_hold = std::chrono::microseconds(*hold);
  if (confirmable)
    if (const auto within = fields.number("confirm_within_ms", 1, kLongestConfirmMs))
      options.confirm_within = std::chrono::milliseconds(*within);
  const std::string wrong = read_forced(fields.text("force").value_or(""), options.forced);
  if (auto fine = fields.finish(); !fine)
    return std::unexpected(fine.error());
  if (!wrong.empty())
    return std::unexpected(vmm::Error{operation, "force", wrong, vmm::Status::kUsage});
  return options;
}

} // namespace stopvisor::patch
