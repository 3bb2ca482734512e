// SPDX-License-Identifier: Apache-2.0
// What a VM is started from: its kernel, initrd and command line, put into memory at the start and at each reset.
#pragma once

#include <array>
#include <cstddef>
#include <expected>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "vmm/boot/file.h"
#include "vmm/boot/image.h"
#include "vmm/error.h"
#include "vmm/guest_memory.h"
#include "vmm/machine_description.h"
#include "vmm/vm.h"

namespace stopvisor::vmm {

// The files of a configuration, read whole; a reset reads them again rather than keeping a copy all along.
class BootFiles {
public:
  // With no kernel in `config` it is the built-in probe guest. RETURNS: as read_file().
  [[nodiscard]] static std::expected<BootFiles, Error> read(const VmConfig& config);

  [[nodiscard]] std::span<const std::byte> kernel() const noexcept;
  [[nodiscard]] std::span<const std::byte> initrd() const noexcept;

private:
  std::optional<FileBytes> kernel_;
  std::optional<FileBytes> initrd_;
};

// The command line the guest is given: the probe guest is told how many vCPUs to start, unless it was already.
[[nodiscard]] std::string boot_cmdline(const VmConfig& config);

// What a machine of this configuration has, but for where an initrd lies in it. The vCPUs of `wanted` are those the
// guest is to use. CONTEXT: any thread.
[[nodiscard]] MachineDescription machine_of(const VmConfig& config, const stopper::CpuMask& wanted, bool has_pit);

// The flattened device tree of this machine (machine_description.h), in which the vCPUs of `wanted` are those the
// guest is to use. RETURNS: as describe_machine(), initrd_gpa().
[[nodiscard]] std::expected<std::vector<std::byte>, Error> describe_vm(const VmConfig& config,
                                                                       const stopper::CpuMask& wanted,
                                                                       const GuestMemory& memory, bool has_pit,
                                                                       const BootFiles& files);

// 16 random bytes for a guest's VM generation ID. RETURNS: kFailed where the host has none. CONTEXT: any thread.
[[nodiscard]] std::expected<std::array<std::byte, 16>, Error> random_generation(const char* operation);

// Loads all of it into `memory`, which reads as zeros, and the ACPI tables of a machine whose guest is to use the
// vCPUs of `wanted`. An ELF kernel is started by PVH, a bzImage by Linux's 64-bit boot protocol.
// RETURNS: as kernel_kind(), load_pvh(), load_linux64(), acpi::write_tables().
[[nodiscard]] std::expected<BootEntry, Error> load_vm(const VmConfig& config, GuestMemory& memory,
                                                      const BootFiles& files, const stopper::CpuMask& wanted,
                                                      std::span<const std::byte> device_tree);

} // namespace stopvisor::vmm
