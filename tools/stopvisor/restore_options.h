// SPDX-License-Identifier: Apache-2.0
// A VM that goes on from a snapshot, from the options of run.
#pragma once

#include <expected>

#include "tools/snapshot/vm_restore.h"
#include "tools/stopvisor/run_options.h"
#include "vmm/error.h"

namespace stopvisor::tools {

// Without --restore, none of the options that go with it. CONTEXT: any thread. RETURNS: kUsage.
[[nodiscard]] std::expected<void, vmm::Error> check_nothing_for_restore(const RunOptions& options);
// The same of what is for nothing else: a guest that comes by migration has a choice of clock as well.
[[nodiscard]] std::expected<void, vmm::Error> check_nothing_for_restore_alone(const RunOptions& options);

// The snapshot that --restore names, which is opened as Restoration::open() does it. CONTEXT: --restore is given;
// any thread; blocks on the file system. RETURNS: kUsage; errors of Key::read() and of Restoration::open().
[[nodiscard]] std::expected<snapshot::Restoration, vmm::Error> open_snapshot(const RunOptions& options);

} // namespace stopvisor::tools
