// SPDX-License-Identifier: Apache-2.0
#include "tools/stopvisor/incoming_options.h"

#include <map>
#include <string>
#include <utility>

#include "tools/stopvisor/net_option.h"
#include "tools/stopvisor/restore_options.h"
#include "vmm/units.h"

namespace stopvisor::tools {
namespace {

using vmm::Error;

// What does not go with --incoming.
std::expected<void, Error> check(const RunOptions& options) {
  if (options.restore || options.machine)
    return std::unexpected(option_error(options.restore ? "--restore" : "--machine", "",
                                        "the source of --incoming describes the whole machine"));
  if (auto fine =
          options.check_machine_is_not_described("the source of --incoming describes the whole machine, this too");
      !fine)
    return fine;
  if (auto fine = check_nothing_for_restore_alone(options); !fine)
    return fine;
  if (options.detach && !options.name)
    return std::unexpected(option_error(
        "--detach", "", "needs --name with --incoming: else nobody could ask for it before it is here"));
  return {};
}

// Of --net N=IF: taps by the networks' numbers.
std::expected<std::map<size_t, std::string>, Error> tap_places(const RunOptions& options) {
  std::map<size_t, std::string> places;
  for (const std::string& text : options.nets) {
    const auto place = parse_tap_place(text);
    if (!place)
      return std::unexpected(place.error());
    if (!places.insert(*place).second)
      return std::unexpected(option_error("--net", text, "this network has a tap already"));
  }
  return places;
}

std::expected<void, Error> set_places(const RunOptions& options, IncomingOrder& order) {
  auto disks = options.disk_places();
  if (!disks)
    return std::unexpected(disks.error());
  order.disks = *std::move(disks);
  auto taps = tap_places(options);
  if (!taps)
    return std::unexpected(taps.error());
  order.taps = *std::move(taps);
  return {};
}

// Who the source is, and how long it is waited for.
std::expected<void, Error> set_source(const RunOptions& options, bool json, IncomingOrder& order) {
  const std::string uri = options.incoming.value_or(""); // there is one: that is why we are here
  auto address = migrate::parse_address_here("run: --incoming", uri, migrate::Side::kDestination);
  if (!address)
    return std::unexpected(address.error());
  order.from = *std::move(address);
  if (order.from.kind == migrate::AddressKind::kStdio && (options.detach || json))
    return std::unexpected(option_error("--incoming", uri, "takes stdin and stdout for itself"));
  order.insecure = options.insecure;
  return {};
}

} // namespace

std::expected<void, Error> check_nothing_for_incoming(const RunOptions& options) {
  return refuse_given({{"--insecure", options.insecure}, {"--keep", options.keep.has_value()}},
                      "goes with --incoming");
}

std::expected<IncomingOrder, Error> incoming_order(const RunOptions& options, bool json) {
  if (auto fine = check(options); !fine)
    return std::unexpected(fine.error());
  IncomingOrder order;
  if (auto fine = set_source(options, json, order); !fine)
    return std::unexpected(fine.error());
  if (auto fine = options.check_name(); !fine)
    return std::unexpected(fine.error());
  order.name = options.name;
  if (auto fine = set_places(options, order); !fine)
    return std::unexpected(fine.error());
  const auto clock = options.wall_clock();
  if (!clock)
    return std::unexpected(clock.error());
  order.wall_clock = *clock;
  order.paused = options.paused;
  if (options.keep) {
    const auto keep = vmm::parse_duration("run: --keep", *options.keep);
    if (!keep)
      return std::unexpected(keep.error());
    order.keep = *keep;
  }
  const auto backing = options.memory_backing();
  if (!backing)
    return std::unexpected(backing.error());
  order.backing = *backing;
  auto serial = options.serial_choice(json || order.from.kind == migrate::AddressKind::kStdio);
  if (!serial)
    return std::unexpected(serial.error());
  order.serial = serial->target;
  order.serial_path = std::move(serial->path);
  return order;
}

} // namespace stopvisor::tools
