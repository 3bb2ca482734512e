// SPDX-License-Identifier: Apache-2.0
#include "vmm/acpi/dsdt.h"

#include <array>
#include <cassert>
#include <string>

#include "vmm/devices/acpi_power.h"
#include "vmm/devices/i8042.h"
#include "vmm/devices/pvpanic.h"
#include "vmm/devices/serial16550.h"
#include "vmm/vm_wiring.h"

namespace stopvisor::vmm::acpi {
namespace {

using aml::Bytes;

constexpr const char* kButtonPath = "\\_SB.PWRB";
constexpr const char* kGenerationPath = "\\_SB.VGEN";
constexpr uint64_t kButtonPressed = 0x80;     // ACPI 6.5, table 5.188 (control method power button)
constexpr uint64_t kGenerationChanged = 0x80; // the generation ID's specification
constexpr uint64_t kPresentAndShown = 0x0f;   // _STA: present, enabled, shown, functioning

Bytes serial() {
  return aml::device("COM1", {aml::name("_HID", aml::eisa_id("PNP0501")), aml::name("_UID", aml::integer(1)),
                              aml::name("_CRS", aml::resources({aml::io_ports(kSerialPort, Serial16550::kPortCount),
                                                                aml::interrupt(kSerialGsi)}))});
}

Bytes keyboard() {
  return aml::device("KBD", {aml::name("_HID", aml::eisa_id("PNP0303")),
                             aml::name("_CRS", aml::resources({aml::io_ports(kKeyboardDataPort, 1),
                                                               aml::io_ports(kKeyboardCommandPort, 1),
                                                               aml::interrupt(kKeyboardGsi)}))});
}

// The controller has no second port, and says so to a driver that looks. Linux takes its absence from these tables
// for a mistake of the firmware, of which it warns.
Bytes mouse() {
  return aml::device("MOU", {aml::name("_HID", aml::eisa_id("PNP0F13")),
                             aml::name("_CRS", aml::resources({aml::interrupt(kKeyboardGsi)}))});
}

// Device n is "Vnnn", in hexadecimal.
Bytes virtio(size_t number, const VirtioMmioPlace& place) {
  assert(place.gpa.value <= UINT32_MAX);
  constexpr const char* kDigits = "0123456789ABCDEF";
  const std::string path{'V', kDigits[number >> 8 & 0xf], kDigits[number >> 4 & 0xf], kDigits[number & 0xf]};
  return aml::device(
      path,
      {aml::name("_HID", aml::text("LNRO0005")), aml::name("_UID", aml::integer(number)),
       aml::name("_CCA", aml::integer(1)), // its accesses to memory are coherent with the caches
       aml::name("_CRS", aml::resources({aml::memory32(static_cast<uint32_t>(place.gpa.value), kVirtioMmioBytes),
                                         aml::interrupt(place.gsi)}))});
}

Bytes power_button() {
  return aml::device("PWRB", {aml::name("_HID", aml::eisa_id("PNP0C0C"))});
}

// "Virtual Machine Generation ID" (Microsoft, 2012): found by _CID, the address in two halves.
Bytes generation_id() {
  return aml::device("VGEN",
                     {aml::name("_HID", aml::text("STPV0001")), aml::name("_CID", aml::text("VM_Gen_Counter")),
                      aml::name("_DDN", aml::text("VM_Gen_Counter")),
                      aml::name("ADDR", aml::package({aml::integer(kGenerationIdGpa & UINT32_MAX),
                                                      aml::integer(kGenerationIdGpa >> 32)}))});
}

// QEMU docs/specs/pvpanic.rst.
Bytes panic_device() {
  return aml::device("PEVT",
                     {aml::name("_HID", aml::text("QEMU0001")), aml::name("_STA", aml::integer(kPresentAndShown)),
                      aml::name("_CRS", aml::resources({aml::io_ports(kPvPanicPort, 1)}))});
}

// ACPI 6.5, 5.6.9: the events that an SCI would tell of, where there is none. Reading the register clears it.
Bytes event_device() {
  const Bytes pending = aml::local0();
  return aml::device(
      "GED",
      {aml::name("_HID", aml::text("ACPI0013")), aml::name("_UID", aml::integer(0)),
       aml::name("_CRS", aml::resources({aml::interrupt(kEventGsi)})),
       aml::port_register32("EVNT", "PEND", kAcpiPowerPort + AcpiPower::kEventOffset),
       aml::method("_EVT", 1,
                   {aml::store(aml::name_path("PEND"), pending),
                    aml::if_set(pending, AcpiPower::kButtonEvent, {aml::notify(kButtonPath, kButtonPressed)}),
                    aml::if_set(pending, AcpiPower::kGenerationEvent,
                                {aml::notify(kGenerationPath, kGenerationChanged)})})});
}

} // namespace

Bytes dsdt_body(const Platform& platform) {
  Bytes devices = serial();
  const auto add = [&devices](const Bytes& more) { devices.insert(devices.end(), more.begin(), more.end()); };
  if (platform.keyboard) {
    add(keyboard());
    add(mouse());
  }
  for (size_t i = 0; i < platform.virtio.size(); ++i)
    add(virtio(i, platform.virtio[i]));
  add(power_button());
  add(generation_id());
  add(panic_device());
  add(event_device());

  const Bytes zero = aml::integer(0);
  Bytes body = aml::name("\\_S5", aml::package({aml::integer(AcpiPower::kSleepTypeS5), zero, zero, zero}));
  const Bytes bus = aml::scope("\\_SB", {devices});
  body.insert(body.end(), bus.begin(), bus.end());
  return body;
}

} // namespace stopvisor::vmm::acpi
