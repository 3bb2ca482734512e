// SPDX-License-Identifier: Apache-2.0
#include "tools/snapshot/live_snapshot.h"

#include <memory>
#include <utility>

#include "tools/snapshot/incremental.h"
#include "tools/snapshot/live_memory.h"
#include "tools/snapshot/vm_capture.h"
#include "vmm/urgent_thread.h"

namespace stopvisor::snapshot {
namespace {

using vmm::Error;
using HoldClock = std::chrono::steady_clock;

// The stop's own account, where it is still the last one: of a guest that was held by others as well there is none
// yet, and only what we added to that counts.
std::chrono::nanoseconds held_for(vmm::Vm& vm, uint64_t stop, std::chrono::nanoseconds in_callback) {
  const stopper::StopReport report = vm.stops().last_report();
  const int64_t hold = report.sequence == stop ? report.hold_ns() : 0;
  return hold > 0 ? std::chrono::nanoseconds(hold) : in_callback;
}

} // namespace

std::expected<LiveCreated, Error> create_live(vmm::Vm& vm, const std::string& directory,
                                              const LiveOptions& options) {
  const std::string operation(options.create.operation);
  CreateOptions create_options = options.create;
  create_options.go_on = [&]() -> std::expected<void, Error> {
    if (vm.state() != vmm::VmState::kEnded)
      return {};
    return std::unexpected(Error{operation, vm.config().name, "the VM ended meanwhile"});
  };
  create_options.confirm = [&]() -> std::expected<void, Error> {
    if (auto good = create_options.go_on(); !good)
      return good;
    return options.create.confirm ? options.create.confirm() : std::expected<void, Error>{};
  };
  auto creation = Creation::begin(directory, create_options); // a directory that is refused disturbs no guest
  if (!creation)
    return std::unexpected(std::move(creation.error()));

  options.begin_phase("protecting memory");
  vmm::FreezeOptions freeze = options.freeze;
  freeze.operation = operation;
  freeze.stop = options.create.stop;
  auto memory = LiveMemory::prepare(vm, std::move(freeze));
  if (!memory)
    return std::unexpected(std::move(memory.error()));

  options.begin_phase("stopping the guest");
  std::expected<Contents, Error> contents = std::unexpected(Error{});
  std::expected<void, Error> frozen;
  std::chrono::nanoseconds in_callback{0};
  const auto stopped = [&] {
    const vmm::UrgentForAWhile urgent;
    return vm.stops().run(
        [&](stopper::StopContext&) {
          const auto begin = HoldClock::now();
          contents = contents_of(operation, vm, options.disks);
          if (contents) {
            options.add_more(*contents);
            frozen = creation->add_disks(contents->disks); // whose workers go on writing after the stop
            if (frozen)
              frozen = (*memory)->freeze();
          }
          in_callback = HoldClock::now() - begin;
          options.at_instant();
          return 0;
        },
        {.deadline = HoldClock::now() + options.stop_within});
  }();
  if (!stopped)
    return std::unexpected(vm.explain(operation, stopped.error()));
  if (!contents)
    return std::unexpected(std::move(contents.error()));
  if (!frozen)
    return std::unexpected(std::move(frozen.error()));

  LiveCreated result;
  result.held_for = held_for(vm, stopped->sequence, in_callback);
  result.callback = in_callback;
  options.begin_phase("writing memory");
  const auto differing = options.parent != nullptr ? difference(*options.parent, **memory) : nullptr;
  auto made = creation->finish(*contents, differing != nullptr ? *differing : **memory);
  if (!made)
    return std::unexpected(std::move(made.error()));
  result.made = *std::move(made);
  result.figures = (*memory)->figures();
  return result;
}

} // namespace stopvisor::snapshot
