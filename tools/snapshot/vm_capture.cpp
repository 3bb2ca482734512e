// SPDX-License-Identifier: Apache-2.0
#include "tools/snapshot/vm_capture.h"

#include <sys/utsname.h>

#include <algorithm>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace stopvisor::snapshot {
namespace {

// For people who look at a snapshot; a restore goes by what is in the state.
Names facts_of_host() {
  Names facts;
  utsname name{};
  if (::uname(&name) == 0)
    facts = {{"kernel", std::string(name.sysname) + " " + name.release}, {"architecture", name.machine}};
  return facts;
}

std::vector<DiskSource> disks_of(const vmm::Vm& vm, bool with_images) {
  std::vector<DiskSource> disks;
  const std::vector<int> images = vm.disk_images();
  for (size_t number = 0; number < images.size(); ++number) {
    const vmm::DiskConfig& config = vm.config().disks[number];
    const ImageAt now = image_at(images[number]);
    DiskSource disk{.disk = {.path = config.path,
                             .read_only = config.read_only,
                             .bytes = now.bytes,
                             .changed_unix_ns = now.changed_unix_ns,
                             .index = std::nullopt},
                    .check = {}};
    if (with_images && !config.read_only)
      disk.image = {images[number], config.path};
    disks.push_back(std::move(disk));
  }
  return disks;
}

class VmMemory final : public MemorySource {
public:
  VmMemory(std::string_view operation, const vmm::Vm& vm) : operation_(operation), vm_(vm) {
    std::vector<MappedRegion> mapped;
    for (const vmm::MemorySlot& slot : vm.memory().slots())
      mapped.push_back({.gpa = slot.base.value, .bytes = slot.size_bytes, .host = slot.host, .dirty = {}});
    source_ = source_of(std::move(mapped), false);
  }
  [[nodiscard]] const std::vector<Region>& regions() const override { return source_->regions(); }
  [[nodiscard]] std::expected<ExtentBytes, vmm::Error> extent(uint64_t number,
                                                              std::span<std::byte> buffer) override {
    if (vm_.state() == vmm::VmState::kEnded)
      return std::unexpected(vmm::Error{std::string(operation_), vm_.config().name, "the VM ended meanwhile"});
    return source_->extent(number, buffer);
  }

private:
  std::string_view operation_;
  const vmm::Vm& vm_;
  std::unique_ptr<MemorySource> source_;
};

} // namespace

std::expected<Contents, vmm::Error> contents_of(std::string_view operation, vmm::Vm& vm, bool with_images) {
  auto saved = vm.save_state();
  if (!saved)
    return std::unexpected(std::move(saved.error()));
  Contents contents;
  contents.vm = vm.config().name;
  contents.host = facts_of_host();
  contents.state = *std::move(saved);
  contents.disks = disks_of(vm, with_images);
  // A file of its own, for programs that read device trees.
  const auto machine =
      std::ranges::find(contents.state, static_cast<uint32_t>(vmm::StateKind::kMachine), &vmm::StateSection::kind);
  if (machine == contents.state.end())
    return std::unexpected(vmm::Error{std::string(operation), contents.vm, "its state has no description of it"});
  contents.machine = machine->payload;
  return contents;
}

std::unique_ptr<MemorySource> memory_of(std::string_view operation, const vmm::Vm& vm) {
  return std::make_unique<VmMemory>(operation, vm);
}

} // namespace stopvisor::snapshot
