// SPDX-License-Identifier: Apache-2.0
// A snapshot as a machine that goes on where it was.
#pragma once

#include <algorithm>
#include <expected>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>

#include "tools/snapshot/chain.h"
#include "tools/snapshot/disk_restore.h"
#include "vmm/vm.h"

namespace stopvisor::snapshot {

// When memory is checked: all of it before the guest starts, or each extent as the guest touches it first.
enum class Verify { kStart, kTouch };

struct RestoreOptions {
  std::string directory;
  std::optional<Key> key{};     // of a snapshot that is sealed with one
  std::optional<Id> expected{}; // which snapshot it must be, where its directory may be another's
  Verify verify = Verify::kStart;
  // The file is mapped, so that all who do so share its pages until they write them. For a snapshot that is raw,
  // full and has no key, as pages that are not in memory yet follow the file. With kStart.
  bool share = false;
  bool prefault = false; // with kTouch: what is not touched is brought in meanwhile; whoever runs the VM does it
  std::optional<vmm::MemoryBacking> backing{}; // as the snapshot's VM had it, where nobody says
  DiskChoices disks = {};
  vmm::WallClock wall_clock = vmm::WallClock::kResume;
};

// What is made into a machine. Movable until read_on(); the options it was opened with live as long.
// CONTEXT: one thread.
class Restoration {
public:
  // Opens the snapshot, and reads what machine it is of. Nothing of what it stands on yet, nor of the memory.
  // RETURNS: errors of Snapshot::describe() and choose_disks(), and kRefused where the machine is none of ours.
  [[nodiscard]] static std::expected<Restoration, vmm::Error> open(const RestoreOptions& options);

  // The machine to create: bare; its name is the snapshot's VM's.
  [[nodiscard]] const vmm::VmConfig& config() const noexcept { return config_; }
  [[nodiscard]] const RestoreOptions& options() const noexcept { return *options_; }
  // Opens the rest of it, whose length is that of the memory, on a thread of its own while a machine is made: what
  // is wrong with it is told by place_disks() or into(). Where this is not called, they do it themselves.
  // CONTEXT: in the process that makes the machine. Until end_reading(), or the object's end.
  void read_on();
  // Calls it off where nobody has waited for it, and waits for its end: a file system can take long.
  void end_reading() noexcept;
  // Makes the images that are in the snapshot. CONTEXT: before a Vm is begun from config(). RETURNS: as
  // place_disks() has it, and errors of Chain::open().
  [[nodiscard]] std::expected<void, vmm::Error> place_disks(PlacedDisks& placed, const std::stop_token& stop = {});
  // Disks are checked; memory, as the options have it; then the state. CONTEXT: once, before vm.start(); blocks.
  // `vm` was begun or created from config(), perhaps with another name, serial port and start, and goes before this
  // object.
  // `failed`: AbsentOptions::failed, for extents that are checked later. RETURNS: errors of the chain, the making
  // and Vm::restore_state(), "was cancelled" (kFailed); the VM is of no use then.
  [[nodiscard]] std::expected<void, vmm::Error>
  into(vmm::Vm& vm, std::function<void(const vmm::Error&)> failed = {}, const std::stop_token& stop = {});
  // The state, with the sections that the Vm passes over, for their owners. CONTEXT: after into().
  [[nodiscard]] std::span<const vmm::StateSection> state() const noexcept { return (*chain_)->newest().state(); }

private:
  Restoration(std::unique_ptr<RestoreOptions> options, Snapshot newest, vmm::VmConfig config,
              std::stop_source stop_reading)
      : options_(std::move(options)), newest_(std::move(newest)), config_(std::move(config)),
        has_images_(
            std::ranges::any_of(newest_.manifest().disks, [](const Disk& disk) { return disk.index.has_value(); })),
        stop_reading_(std::move(stop_reading)) {}
  [[nodiscard]] const std::expected<Chain, vmm::Error>& chain(const std::stop_token& stop); // waits for it
  [[nodiscard]] vmm::Error named(const Chain& chain, vmm::Error error) const;
  [[nodiscard]] std::expected<void, vmm::Error> take_memory(const Chain& chain, vmm::Vm& vm,
                                                            std::function<void(const vmm::Error&)> failed) const;
  [[nodiscard]] std::expected<void, vmm::Error> put_memory(const Chain& chain, vmm::Vm& vm,
                                                           const std::stop_token& stop) const;

  std::unique_ptr<RestoreOptions> options_; // its key is looked at by the chain
  Snapshot newest_;                         // until it is the chain's
  vmm::VmConfig config_;
  bool has_images_; // of disks
  std::stop_source stop_reading_;
  std::future<std::expected<Chain, vmm::Error>> reading_;
  std::unique_ptr<std::expected<Chain, vmm::Error>> chain_; // once it was waited for
};

} // namespace stopvisor::snapshot
