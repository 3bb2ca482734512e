// SPDX-License-Identifier: Apache-2.0
// Parses `--disk`: FILE[,ro] of a new machine, N=FILE of one that goes on.
#pragma once

#include <expected>
#include <string>
#include <utility>

#include "vmm/disk_config.h"
#include "vmm/error.h"

namespace stopvisor::tools {

// The path is made absolute, so that it means the same to whoever reads the machine description later. A name that
// itself ends with ",ro" has to be given as "NAME,ro,rw".
// CONTEXT: any thread. RETURNS: kUsage; the object is the text.
[[nodiscard]] std::expected<vmm::DiskConfig, vmm::Error> parse_disk(const std::string& text);

// Parses `--disk N=FILE`, an image for disk N of a snapshot. CONTEXT and RETURNS: the same.
[[nodiscard]] std::expected<std::pair<size_t, std::string>, vmm::Error> parse_disk_place(const std::string& text);

} // namespace stopvisor::tools
