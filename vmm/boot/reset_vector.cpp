// SPDX-License-Identifier: Apache-2.0
#include "vmm/boot/reset_vector.h"

#include <array>
#include <span>

#include "vmm/boot/memory_layout.h"
#include "vmm/devices/acpi_power.h"

namespace stopvisor::vmm {
namespace {

constexpr uint16_t kPort = kAcpiPowerPort + AcpiPower::kResetOffset;

// 16-bit code: mov $port, %dx; mov $value, %al; out %al, %dx; cli; again: hlt; jmp again
constexpr std::array<uint8_t, 10> kCode{0xba, kPort & 0xff, kPort >> 8, 0xb0, AcpiPower::kResetValue,
                                        0xee, 0xfa,         0xf4,       0xeb, 0xfd};
static_assert(kResetVectorGpa + kCode.size() <= kLowReservedEnd);

} // namespace

std::expected<void, Error> write_reset_vector(GuestMemory& memory) {
  return write_boot_data(memory, kResetVectorGpa, std::as_bytes(std::span(kCode)));
}

} // namespace stopvisor::vmm
