// SPDX-License-Identifier: Apache-2.0
#include "tools/stopvisor/net_option.h"

#include <algorithm>
#include <charconv>
#include <string_view>
#include <utility>

#include "vmm/tap.h"

namespace stopvisor::tools {
namespace {

constexpr std::string_view kTap = "tap=";
constexpr std::string_view kMac = "mac=";

std::unexpected<vmm::Error> usage(const std::string& text, std::string reason) {
  return std::unexpected(vmm::Error{"run: --net", text, std::move(reason), vmm::Status::kUsage});
}

} // namespace

std::expected<vmm::NetConfig, vmm::Error> parse_net(const std::string& text) {
  vmm::NetConfig net;
  bool has_tap = false;
  for (size_t start = 0; start <= text.size();) {
    const size_t end = std::min(text.find(',', start), text.size());
    const std::string_view part = std::string_view(text).substr(start, end - start);
    start = end + 1;
    if (part.starts_with(kTap) && !has_tap) {
      has_tap = true;
      net.tap = part.substr(kTap.size());
      if (auto fine = vmm::check_interface_name(net.tap); !fine)
        return usage(text, (net.tap.empty() ? "" : net.tap + " ") + fine.error().reason);
    } else if (part.starts_with(kMac) && !net.mac) {
      net.mac = vmm::parse_mac(part.substr(kMac.size()));
      if (!net.mac || !net.mac->is_station())
        return usage(text, "mac= must be six bytes as in 02:00:00:00:00:01, and of one machine");
    } else {
      return usage(text, "must be tap=INTERFACE or tap=INTERFACE,mac=ADDRESS");
    }
  }
  if (!has_tap)
    return usage(text, "lacks tap=INTERFACE");
  return net;
}

std::expected<std::pair<size_t, std::string>, vmm::Error> parse_tap_place(const std::string& text) {
  size_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const std::string_view rest(end, text.data() + text.size());
  if (error != std::errc{} || rest.size() < 2 || !rest.starts_with('='))
    return usage(text, "must be N=INTERFACE with --incoming: a tap for network N of the machine that comes");
  std::string tap(rest.substr(1));
  if (auto fine = vmm::check_interface_name(tap); !fine)
    return usage(text, tap + " " + fine.error().reason);
  return std::pair(number, std::move(tap));
}

} // namespace stopvisor::tools
