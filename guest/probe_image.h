// SPDX-License-Identifier: Apache-2.0
// The probe guest as the bytes of its PVH ELF file, embedded in the program that links this.
#pragma once

#include <cstddef>
#include <span>

namespace stopvisor::probe {

// RETURNS the whole ELF file, 64-byte aligned, as it is also installed. CONTEXT: any thread.
[[nodiscard]] std::span<const std::byte> image() noexcept;

} // namespace stopvisor::probe
