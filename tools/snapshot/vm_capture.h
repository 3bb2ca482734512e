// SPDX-License-Identifier: Apache-2.0
// A running VM as a snapshot's contents.
#pragma once

#include <expected>
#include <memory>
#include <string_view>

#include "tools/snapshot/memory_source.h"
#include "tools/snapshot/writer.h"
#include "vmm/vm.h"

namespace stopvisor::snapshot {

// CONTEXT, both: from one callback of vm.stops().run(), which goes on until the memory is read: a hold alone keeps
// the guest away, but not those who write to its memory from outside (poke, patches), whose callbacks run under it.

// What a snapshot has of `vm`, but for its memory. With `with_images` the images of the disks that the guest can
// write are to be put into it. RETURNS: errors of Vm::save_state().
[[nodiscard]] std::expected<Contents, vmm::Error> contents_of(std::string_view operation, vmm::Vm& vm,
                                                              bool with_images = false);
// Its memory. Reading fails once the VM is to end, which waits for the callback.
[[nodiscard]] std::unique_ptr<MemorySource> memory_of(std::string_view operation, const vmm::Vm& vm);

} // namespace stopvisor::snapshot
