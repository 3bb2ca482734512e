// SPDX-License-Identifier: Apache-2.0
// Interrupt gates. They are filled at CPL 3, which runs natively everywhere.
#include "guest/gates.h"

#include "guest/layout.h"

#include <stdint.h>

extern "C" {
extern uint64_t probe_idt[];
extern const char probe_exceptions[];
extern const char probe_undefined[];
extern const char probe_timer_x2apic[];
extern const char probe_timer_xapic[];
extern const char probe_button_x2apic[];
extern const char probe_button_xapic[];
extern const char probe_hotplug_x2apic[];
extern const char probe_hotplug_xapic[];
extern const char probe_wake_x2apic[];
extern const char probe_wake_xapic[];
extern const char probe_spurious[];
extern const uint8_t probe_x2apic;
}

namespace stopvisor::probe {
namespace {

constexpr uint32_t kExceptions = 32;
constexpr uint32_t kUndefined = 6;
constexpr uint64_t kExceptionStubBytes = 16;

// A 64-bit interrupt gate. (Intel SDM vol. 3, 6.14.1; DPL 0: CPL 3 code raises no interrupt by INT n)
void set_gate(uint64_t vector, const char* handler) {
  const uint64_t address = reinterpret_cast<uint64_t>(handler);
  probe_idt[2 * vector] = (address & 0xffff) | uint64_t{PROBE_KERNEL_CS} << 16 | uint64_t{0x8e00} << 32 |
                          (address >> 16 & 0xffff) << 48;
  probe_idt[2 * vector + 1] = address >> 32;
}

} // namespace

void fill_gates() {
  for (uint32_t vector = 0; vector < kExceptions; ++vector)
    set_gate(vector, probe_exceptions + vector * kExceptionStubBytes);
  set_gate(kUndefined, probe_undefined);
  for (uint32_t vector = kExceptions; vector < 256; ++vector)
    set_gate(vector, probe_spurious);
  const bool x2apic = probe_x2apic != 0;
  set_gate(PROBE_VECTOR_TIMER, x2apic ? probe_timer_x2apic : probe_timer_xapic);
  set_gate(PROBE_VECTOR_BUTTON, x2apic ? probe_button_x2apic : probe_button_xapic);
  set_gate(PROBE_VECTOR_HOTPLUG, x2apic ? probe_hotplug_x2apic : probe_hotplug_xapic);
  set_gate(PROBE_VECTOR_WAKE, x2apic ? probe_wake_x2apic : probe_wake_xapic);
}

} // namespace stopvisor::probe
