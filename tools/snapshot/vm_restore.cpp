// SPDX-License-Identifier: Apache-2.0
#include "tools/snapshot/vm_restore.h"

#include <algorithm>
#include <cstdint>
#include <exception>
#include <span>
#include <utility>
#include <vector>

#include "tools/snapshot/chain_origin.h"
#include "vmm/absent_memory.h"
#include "vmm/machine_reader.h"

namespace stopvisor::snapshot {
namespace {

constexpr const char* kOperation = "restore";

vmm::Error refused(const std::string& directory, std::string reason) {
  return {kOperation, directory, std::move(reason), vmm::Status::kRefused};
}

std::expected<vmm::VmConfig, vmm::Error> config_of(const Snapshot& snapshot) {
  if (snapshot.machine().empty())
    return std::unexpected(refused(snapshot.directory(), "machine.dtb describes no machine"));
  auto config = vmm::read_machine(snapshot.machine());
  if (!config)
    return std::unexpected(refused(snapshot.directory(), "machine.dtb: " + config.error().text()));
  // As many vCPUs as were there, online or not: the description tells of those that were offered last.
  const auto vcpus = std::ranges::count(snapshot.state(), static_cast<uint32_t>(vmm::StateKind::kVcpuRegs),
                                        &vmm::StateSection::kind);
  if (vcpus == 0)
    return std::unexpected(refused(snapshot.directory(), "its state has no vCPU"));
  config->cpus = static_cast<uint32_t>(vcpus);
  config->max_cpus = std::max(config->max_cpus, config->cpus);
  config->bare = true;
  return config;
}

OpenOptions open_options(const RestoreOptions& options, std::stop_token stop) {
  return {.operation = kOperation,
          .key = options.key ? &*options.key : nullptr,
          .expected = options.expected,
          .stop = std::move(stop)};
}

// All of it, or why not: there may be no memory for its index. CONTEXT: any thread.
std::expected<Chain, vmm::Error> open_chain(Snapshot newest, const OpenOptions& options) noexcept {
  const std::string directory = newest.directory();
  try {
    return Chain::open(std::move(newest), options);
  } catch (const std::exception& failure) {
    return std::unexpected(vmm::Error{kOperation, directory, failure.what()});
  }
}

} // namespace

std::expected<Restoration, vmm::Error> Restoration::open(const RestoreOptions& options) {
  auto kept = std::make_unique<RestoreOptions>(options);
  std::stop_source stop_reading;
  auto newest = Snapshot::describe(kept->directory, open_options(*kept, stop_reading.get_token()));
  if (!newest)
    return std::unexpected(std::move(newest.error()));
  if (kept->share && kept->key)
    return std::unexpected(refused(kept->directory, "is sealed with a key, and the pages of a file that is shared "
                                                    "follow the file after they were checked"));
  if (kept->share && !newest->mappable())
    return std::unexpected(refused(kept->directory,
                                   "is compressed or incremental: its memory is no file that could "
                                   "be shared ('snapshot chain merge' makes one)"));
  auto config = config_of(*newest);
  if (!config)
    return std::unexpected(std::move(config.error()));
  if (auto chosen = choose_disks(kOperation, *newest, kept->disks, *config); !chosen)
    return std::unexpected(std::move(chosen.error()));
  config->backing = kept->share ? vmm::MemoryBacking::kAnonymous : kept->backing.value_or(config->backing);
  return Restoration(std::move(kept), *std::move(newest), *std::move(config), std::move(stop_reading));
}

void Restoration::read_on() {
  const auto read = [newest = std::make_shared<Snapshot>(std::move(newest_)),
                     options = open_options(*options_, stop_reading_.get_token())] {
    return open_chain(std::move(*newest), options);
  };
  reading_ = std::async(std::launch::async | std::launch::deferred, read); // when it is asked for, without threads
}

void Restoration::end_reading() noexcept {
  if (!reading_.valid())
    return;
  stop_reading_.request_stop();
  reading_.wait();
}

const std::expected<Chain, vmm::Error>& Restoration::chain(const std::stop_token& stop) {
  const std::stop_callback call_off(stop, [this] { stop_reading_.request_stop(); });
  if (!chain_)
    chain_ = std::make_unique<std::expected<Chain, vmm::Error>>(
        reading_.valid() ? reading_.get()
                         : open_chain(std::move(newest_), open_options(*options_, stop_reading_.get_token())));
  return *chain_;
}

std::expected<void, vmm::Error> Restoration::place_disks(PlacedDisks& placed, const std::stop_token& stop) {
  if (!has_images_)
    return {};
  const auto& all = chain(stop);
  if (!all)
    return std::unexpected(all.error());
  return snapshot::place_disks(kOperation, all->newest(), options_->disks, placed, stop);
}

// So that an error of a section says whose. Those of files do.
vmm::Error Restoration::named(const Chain& chain, vmm::Error error) const {
  const bool of_file = std::ranges::any_of(
      chain.members(), [&](const Snapshot& member) { return error.object.starts_with(member.directory()); });
  if (!of_file)
    error.object = options_->directory + (error.object.empty() ? "" : ": " + error.object);
  return error;
}

std::expected<void, vmm::Error> Restoration::into(vmm::Vm& vm, std::function<void(const vmm::Error&)> failed,
                                                  const std::stop_token& stop) {
  const auto& all = chain(stop);
  if (!all)
    return std::unexpected(all.error());
  if (auto fine = check_disks(kOperation, all->newest(), options_->disks, vm); !fine)
    return fine;
  const auto slots = vm.memory().slots();
  const std::vector<Region>& regions = all->regions();
  const bool alike = std::ranges::equal(slots, regions, [](const vmm::MemorySlot& slot, const Region& region) {
    return slot.base.value == region.gpa && slot.size_bytes == region.bytes;
  });
  if (!alike)
    return std::unexpected(refused(options_->directory, "its memory lies elsewhere than machine.dtb has it"));
  const bool on_touch = options_->verify == Verify::kTouch;
  if (on_touch) // while the machine is made
    if (auto taken = take_memory(*all, vm, std::move(failed)); !taken)
      return taken;
  if (auto made = vm.await_made(); !made)
    return made;
  if (!on_touch)
    if (auto done = put_memory(*all, vm, stop); !done)
      return done;
  if (auto done = vm.restore_state(all->newest().state(), {.wall_clock = options_->wall_clock}); !done)
    return std::unexpected(named(*all, done.error()));
  return {};
}

std::expected<void, vmm::Error> Restoration::take_memory(const Chain& chain, vmm::Vm& vm,
                                                         std::function<void(const vmm::Error&)> failed) const {
  if (auto taken = vm.take_memory_from(std::make_unique<ChainOrigin>(chain), std::move(failed)); !taken)
    return taken;
  if (auto brought = vm.bring_needed(chain.newest().state()); !brought)
    return std::unexpected(named(chain, brought.error()));
  return {};
}

std::expected<void, vmm::Error> Restoration::put_memory(const Chain& chain, vmm::Vm& vm,
                                                        const std::stop_token& stop) const {
  const Work how{kOperation, options_->directory, 0, stop};
  if (options_->share) {
    if (auto verified = chain.verify(how); !verified)
      return verified;
    std::vector<uint64_t> offsets;
    for (const Region& region : chain.regions())
      offsets.push_back(region.offset);
    return vm.map_memory(chain.newest().memory_fd(), offsets);
  }
  std::vector<std::span<std::byte>> to;
  for (const vmm::MemorySlot& slot : vm.memory().slots())
    to.emplace_back(slot.host, slot.size_bytes);
  return chain.read_memory(to, how);
}

} // namespace stopvisor::snapshot
