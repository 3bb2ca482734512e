// SPDX-License-Identifier: Apache-2.0
// Reads the file of `run --machine`: a flattened device tree, or its source, which dtc compiles.
#pragma once

#include <expected>
#include <string>

#include "vmm/error.h"
#include "vmm/vm.h"

namespace stopvisor::vmm {

// Which of the two it is its first bytes tell, not its name. Relative paths in it begin at the file's own folder,
// and come out absolute. CONTEXT: blocks on the file system and, for a source, on a child process. RETURNS: as
// read_machine(), the object beginning with `path`; kFailed where the file cannot be read, dtc is not installed or
// refuses it (with what it says).
[[nodiscard]] std::expected<VmConfig, Error> read_machine_file(const std::string& path);

} // namespace stopvisor::vmm
