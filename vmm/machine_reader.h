// SPDX-License-Identifier: Apache-2.0
// Reads a machine back from its description, a flattened device tree from a file (docs/reference/machine-file.md).
//
// What can differ between machines is read: name, memory, vCPUs, what is booted, virtio devices. Then the
// description of the machine that would be made of it is written anew, and everything in the file must stand there
// as it is: a device at another address, a node or a property that is not ours is refused by name. So nothing in a
// file is ever passed over in silence; what a file leaves out, every machine has.
#pragma once

#include <cstddef>
#include <expected>
#include <span>

#include "vmm/error.h"
#include "vmm/vm.h"

namespace stopvisor::vmm {

inline constexpr size_t kMaxMachineBytes = 4 << 20; // of a description

// `tree`: hostile bytes. CONTEXT: any thread, does not block.
// RETURNS: the configuration, its serial port going nowhere; kUsage, naming node and property, for anything that is
// no description of a machine we make. The files it names are not looked at.
[[nodiscard]] std::expected<VmConfig, Error> read_machine(std::span<const std::byte> tree);

} // namespace stopvisor::vmm
