// SPDX-License-Identifier: Apache-2.0
#include "tools/snapshot/live_memory.h"

#include <algorithm>
#include <string>
#include <utility>

#include "vmm/absent_memory.h"

namespace stopvisor::snapshot {

static_assert(kExtentBytes == vmm::FrozenMemory::kExtentBytes);

using vmm::Error;

LiveMemory::LiveMemory(vmm::Vm& vm) : vm_(vm) {
  const auto slots = vm.memory().slots();
  for (const vmm::MemorySlot& slot : slots) {
    regions_.push_back({.gpa = slot.base.value, .bytes = slot.size_bytes});
    places_.push_back(static_cast<uint64_t>(slot.host - slots.front().host));
  }
  lay_out(regions_);
}

std::expected<std::unique_ptr<LiveMemory>, Error> LiveMemory::prepare(vmm::Vm& vm, vmm::FreezeOptions options) {
  if (vm.memory().maps_file())
    return std::unexpected(Error{options.operation, vm.config().name,
                                 "its memory is a snapshot's file ('run --restore' with --share), which cannot be "
                                 "protected; without --live it can be written",
                                 vmm::Status::kRefused});
  // One part of the kernel's watches a piece of memory at a time.
  if (vmm::AbsentMemory* const absent = vm.absent_memory(); absent != nullptr)
    if (auto all = absent->bring_all(options.stop); !all)
      return std::unexpected(std::move(all.error()));
  if (!vm.freeze_place().enter())
    return std::unexpected(
        Error{options.operation, vm.config().name, "another live snapshot is being written", vmm::Status::kBusy});
  std::unique_ptr<LiveMemory> live(new LiveMemory(vm));      // leaves the place, come what may
  if (vm.memory().backing() == vmm::MemoryBacking::kHugetlb) // whose pages are protected as wholes
    options.cluster_bytes = std::max(options.cluster_bytes, vmm::kHugePageBytes);
  live->operation_ = options.operation;
  // One mapping, whatever hole the guest sees in it.
  auto frozen =
      vmm::FrozenMemory::create({vm.memory().slots().front().host, vm.memory().size_bytes()}, std::move(options));
  if (!frozen)
    return std::unexpected(std::move(frozen.error()));
  live->frozen_ = std::move(*frozen);
  vm.freeze_place().hold(live->frozen_.get()); // before anything is protected that a reset could lay bare
  if (auto armed = live->named(live->frozen_->arm()); !armed)
    return std::unexpected(std::move(armed.error()));
  return live;
}

LiveMemory::~LiveMemory() {
  vm_.freeze_place().hold(nullptr); // nobody is in it after this
  frozen_.reset();
  vm_.freeze_place().leave();
}

std::expected<ExtentBytes, Error> LiveMemory::extent(uint64_t number, std::span<std::byte> buffer) {
  if (vm_.state() == vmm::VmState::kEnded)
    return std::unexpected(Error{operation_, vm_.config().name, "the VM ended meanwhile"});
  const uint64_t begin = number * kExtentBytes;
  for (size_t i = 0; i < regions_.size(); ++i) {
    const Region& region = regions_[i];
    if (begin < region.offset || begin >= region.offset + region.bytes)
      continue;
    const uint64_t into = begin - region.offset;
    const uint64_t bytes = std::min(kExtentBytes, region.bytes - into);
    if (auto copied = named(frozen_->copy(places_[i] + into, buffer.first(bytes))); !copied)
      return std::unexpected(std::move(copied.error()));
    return ExtentBytes{.bytes = buffer.data(), .own = ram_of(regions_, number)};
  }
  return ExtentBytes{}; // between two regions
}

std::expected<void, Error> LiveMemory::named(std::expected<void, Error> done) const {
  if (!done && done.error().object.empty())
    done.error().object = vm_.config().name;
  return done;
}

} // namespace stopvisor::snapshot
