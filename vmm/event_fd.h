// SPDX-License-Identifier: Apache-2.0
// An eventfd: a counter that one side raises, and the other sleeps on or has KVM act upon.
#pragma once

#include <expected>
#include <string_view>

#include "vmm/error.h"
#include "vmm/unique_fd.h"

namespace stopvisor::vmm {

// Non-blocking, close-on-exec, 0. `object` is for the error. RETURNS: kFailed where the host has no more.
[[nodiscard]] std::expected<UniqueFd, Error> make_event(std::string_view object);

// Adds 1. CONTEXT: any thread, does not block: a counter that is full stays raised, which is all it says.
void raise_event(int fd) noexcept;
// Back to 0. RETURNS: whether it was raised. CONTEXT: any thread, does not block.
bool clear_event(int fd) noexcept;

} // namespace stopvisor::vmm
