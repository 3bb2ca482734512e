// SPDX-License-Identifier: Apache-2.0
#include "tools/stopvisor/restore_options.h"

#include <string>
#include <utility>

namespace stopvisor::tools {
namespace {

using vmm::Error;

// How the guest gets its memory.
std::expected<void, Error> set_memory(const RunOptions& given, snapshot::RestoreOptions& options) {
  const std::string verify = given.verify.value_or(given.prefault ? "touch" : "start");
  if (verify != "start" && verify != "touch")
    return std::unexpected(option_error("--verify", verify, "must be start or touch"));
  if (given.prefault && verify == "start")
    return std::unexpected(
        option_error("--prefault", "", "goes with --verify touch: else all is there before the start"));
  if (given.share && verify == "touch")
    return std::unexpected(
        option_error("--share", "", "goes with --verify start: what is checked on touch is copied"));
  if (given.share && given.backing)
    return std::unexpected(option_error("--share", "", "is a memory backing of its own"));
  options.verify = verify == "touch" ? snapshot::Verify::kTouch : snapshot::Verify::kStart;
  options.prefault = given.prefault;
  options.share = given.share;
  const auto backing = given.memory_backing();
  if (!backing)
    return std::unexpected(backing.error());
  options.backing = *backing;
  return {};
}

std::expected<void, Error> set_disks(const RunOptions& given, snapshot::RestoreOptions& options) {
  auto places = given.disk_places();
  if (!places)
    return std::unexpected(places.error());
  options.disks.places = *std::move(places);
  options.disks.as_they_are = given.disks_as_they_are;
  return {};
}

// Which snapshot it must be, and the key it is sealed with.
std::expected<void, Error> set_identity(const RunOptions& given, snapshot::RestoreOptions& options) {
  if (given.key) {
    const auto key = snapshot::Key::read("run: --key", *given.key);
    if (!key)
      return std::unexpected(key.error());
    options.key = *key;
  }
  if (given.expect_id) {
    const auto id = snapshot::parse_id("run: --expect-id", *given.expect_id);
    if (!id)
      return std::unexpected(id.error());
    options.expected = *id;
  }
  return {};
}

std::expected<snapshot::RestoreOptions, Error> restore_options(const RunOptions& given) {
  if (given.machine)
    return std::unexpected(option_error("--machine", "", "the snapshot of --restore describes the whole machine"));
  if (auto fine =
          given.check_machine_is_not_described("the snapshot of --restore describes the whole machine, this too");
      !fine)
    return std::unexpected(fine.error());
  snapshot::RestoreOptions options{.directory = given.restore.value_or("")};
  if (auto fine = set_memory(given, options); !fine)
    return std::unexpected(fine.error());
  const auto clock = given.wall_clock();
  if (!clock)
    return std::unexpected(clock.error());
  options.wall_clock = *clock;
  if (auto fine = set_disks(given, options); !fine)
    return std::unexpected(fine.error());
  if (auto fine = set_identity(given, options); !fine)
    return std::unexpected(fine.error());
  return options;
}

} // namespace

std::expected<void, Error> check_nothing_for_restore_alone(const RunOptions& options) {
  return refuse_given({{"--key", options.key.has_value()},
                       {"--expect-id", options.expect_id.has_value()},
                       {"--disks-as-they-are", options.disks_as_they_are},
                       {"--verify", options.verify.has_value()},
                       {"--prefault", options.prefault},
                       {"--share", options.share}},
                      "goes with --restore");
}

std::expected<void, Error> check_nothing_for_restore(const RunOptions& options) {
  if (auto fine = check_nothing_for_restore_alone(options); !fine)
    return fine;
  return refuse_given({{"--clock", options.clock.has_value()}}, "goes with --restore");
}

std::expected<snapshot::Restoration, Error> open_snapshot(const RunOptions& options) {
  const auto choices = restore_options(options);
  if (!choices)
    return std::unexpected(choices.error());
  return snapshot::Restoration::open(*choices);
}

} // namespace stopvisor::tools
