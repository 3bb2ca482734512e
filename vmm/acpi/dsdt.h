// SPDX-License-Identifier: Apache-2.0
// The devices of this machine in ACPI's words: the body of its DSDT.
#pragma once

#include "vmm/acpi/aml.h"
#include "vmm/acpi/platform.h"

namespace stopvisor::vmm::acpi {

// COM1, the keyboard where there is one, virtio devices (LNRO0005), power button and VM generation ID, both told of
// by the generic event device, pvpanic, and the sleep state S5. CONTEXT: any thread.
[[nodiscard]] aml::Bytes dsdt_body(const Platform& platform);

} // namespace stopvisor::vmm::acpi
