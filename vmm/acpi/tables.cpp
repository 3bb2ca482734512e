// SPDX-License-Identifier: Apache-2.0
#include "vmm/acpi/tables.h"

#include <cstring>
#include <numeric>
#include <string_view>
#include <utility>

#include "vmm/acpi/dsdt.h"
#include "vmm/devices/acpi_power.h"
#include "vmm/units.h"

namespace stopvisor::vmm::acpi {
namespace {

using aml::Bytes;

constexpr std::string_view kOem = "STPVSR";        // 6 bytes
constexpr std::string_view kOemTable = "STOPVSR "; // 8 bytes
constexpr size_t kLengthOffset = 4, kChecksumOffset = 9;

template <typename T>
void put(Bytes& to, T value) {
  const auto bytes = std::as_bytes(std::span(&value, 1)); // little endian on both sides
  to.insert(to.end(), bytes.begin(), bytes.end());
}

template <typename T>
void set(Bytes& table, size_t offset, T value) {
  std::memcpy(table.data() + offset, &value, sizeof value);
}

void put_text(Bytes& to, std::string_view text) {
  for (const char c : text)
    to.push_back(static_cast<std::byte>(c));
}

// Makes the bytes [0, length) add up to 0.
void set_checksum(Bytes& table, size_t at, size_t length) {
  set(table, at, uint8_t{0});
  const auto sum = std::accumulate(
      table.begin(), table.begin() + static_cast<ptrdiff_t>(length), uint8_t{0},
      [](uint8_t total, std::byte byte) { return static_cast<uint8_t>(total + std::to_integer<uint8_t>(byte)); });
  set(table, at, static_cast<uint8_t>(-sum));
}

// ACPI 6.5, 5.2.6: the header that all tables but the RSDP have; finish() fills in the rest.
Bytes header(std::string_view signature, uint8_t revision) {
  Bytes table;
  put_text(table, signature);
  put(table, uint32_t{0}); // length
  put(table, revision);
  put(table, uint8_t{0}); // checksum
  put_text(table, kOem);
  put_text(table, kOemTable);
  put(table, uint32_t{1}); // OEM revision
  put_text(table, "STPV");
  put(table, uint32_t{1});
  return table;
}

Bytes finish(Bytes table) {
  set(table, kLengthOffset, static_cast<uint32_t>(table.size()));
  set_checksum(table, kChecksumOffset, table.size());
  return table;
}

Bytes dsdt(const Platform& platform) {
  Bytes table = header("DSDT", 2); // from revision 2 on integers have 64 bits
  const Bytes body = dsdt_body(platform);
  table.insert(table.end(), body.begin(), body.end());
  return finish(std::move(table));
}

// ACPI 6.5, 5.2.9. What is not set here is 0, as hardware-reduced ACPI has it.
Bytes fadt(Gpa dsdt_gpa) {
  constexpr size_t kBytes = 276;
  constexpr size_t kBootFlags = 109, kFlags = 112, kReset = 116, kResetValue = 128, kMinorVersion = 131,
                   kXDsdt = 140, kSleepControl = 244, kSleepStatus = 256, kHypervisor = 268;
  constexpr uint16_t kHas8042 = 1 << 1, kNoVga = 1 << 2, kNoAspm = 1 << 4, kNoCmosRtc = 1 << 5;
  constexpr uint32_t kWbinvd = 1 << 0, kNoFixedPowerButton = 1 << 4, kNoFixedSleepButton = 1 << 5,
                     kResetSupported = 1 << 10, kHardwareReduced = 1 << 20;
  // 5.2.3.2, an I/O port of 8 bits, accessed as a byte.
  const auto set_port = [](Bytes& table, size_t offset, uint16_t port) {
    constexpr uint8_t kSystemIo = 1, kWidth = 8, kByteAccess = 1;
    set(table, offset, kSystemIo);
    set(table, offset + 1, kWidth);
    set(table, offset + 3, kByteAccess);
    set(table, offset + 4, uint64_t{port});
  };
  Bytes table = header("FACP", 6);
  table.resize(kBytes);
  set(table, kBootFlags, static_cast<uint16_t>(kHas8042 | kNoVga | kNoAspm | kNoCmosRtc));
  set(table, kFlags, kWbinvd | kNoFixedPowerButton | kNoFixedSleepButton | kResetSupported | kHardwareReduced);
  set_port(table, kReset, kAcpiPowerPort + AcpiPower::kResetOffset);
  set(table, kResetValue, AcpiPower::kResetValue);
  set(table, kMinorVersion, uint8_t{5});
  set(table, kXDsdt, dsdt_gpa.value);
  set_port(table, kSleepControl, kAcpiPowerPort + AcpiPower::kSleepControlOffset);
  set_port(table, kSleepStatus, kAcpiPowerPort + AcpiPower::kSleepStatusOffset);
  std::memcpy(table.data() + kHypervisor, "STOPVSOR", 8);
  return finish(std::move(table));
}

// ACPI 6.5, 5.2.12. Only the vCPUs that are to be started: there is nothing in these tables by which a guest could
// be told of others later.
Bytes madt(const Platform& platform) {
  constexpr uint32_t kLocalApicGpa = 0xfee0'0000, kIoApicGpa = 0xfec0'0000;
  constexpr uint32_t kFirstWideId = 255; // of those that xAPIC has no room for
  constexpr uint32_t kEnabled = 1;
  Bytes table = header("APIC", 5);
  put(table, kLocalApicGpa);
  put(table, uint32_t{0}); // flags: no 8259s to be set up
  bool any_wide = false;
  for (const uint32_t id : platform.apic_ids) {
    if (id < kFirstWideId) {
      put(table, uint16_t{0 | 8 << 8}); // processor local APIC: type, length
      put(table, static_cast<uint8_t>(id));
      put(table, static_cast<uint8_t>(id));
      put(table, kEnabled);
    } else {
      any_wide = true;
      put(table, uint16_t{9 | 16 << 8}); // processor local x2APIC
      put(table, uint16_t{0});
      put(table, id);
      put(table, kEnabled);
      put(table, id);
    }
  }
  put(table, uint16_t{1 | 12 << 8}); // I/O APIC: id 0, from GSI 0 on
  put(table, uint16_t{0});
  put(table, kIoApicGpa);
  put(table, uint32_t{0});
  put(table, uint16_t{4 | 6 << 8}); // NMI of all local APICs: LINT1
  put(table, uint8_t{0xff});
  put(table, uint16_t{0});
  put(table, uint8_t{1});
  if (any_wide) {
    put(table, uint16_t{0xa | 12 << 8}); // the same of all local x2APICs
    put(table, uint16_t{0});
    put(table, UINT32_MAX);
    put(table, uint32_t{1}); // LINT1, and three reserved bytes
  }
  return finish(std::move(table));
}

Bytes xsdt(const std::vector<Table>& tables) {
  Bytes table = header("XSDT", 1);
  for (const Table& listed : tables)
    put(table, listed.gpa.value);
  return finish(std::move(table));
}

// ACPI 6.5, 5.2.5.3.
Bytes rsdp(Gpa xsdt_gpa) {
  constexpr size_t kOldBytes = 20, kBytes = 36, kOldChecksum = 8, kNewChecksum = 32;
  Bytes table;
  put_text(table, "RSD PTR ");
  put(table, uint8_t{0});
  put_text(table, kOem);
  put(table, uint8_t{2});  // revision
  put(table, uint32_t{0}); // no RSDT
  put(table, static_cast<uint32_t>(kBytes));
  put(table, xsdt_gpa.value);
  table.resize(kBytes);
  set_checksum(table, kOldChecksum, kOldBytes);
  set_checksum(table, kNewChecksum, kBytes);
  return table;
}

} // namespace

std::vector<Table> build_tables(const Platform& platform) {
  constexpr uint64_t kAlignment = 64;
  uint64_t next = kTablesGpa + kAlignment; // after the RSDP
  const auto place = [&next](std::string signature, Bytes bytes) {
    Table table{std::move(signature), Gpa{next}, std::move(bytes)};
    next = (next + table.bytes.size() + kAlignment - 1) & ~(kAlignment - 1);
    return table;
  };
  const Table devices = place("DSDT", dsdt(platform));
  std::vector<Table> listed;
  listed.push_back(place("FACP", fadt(devices.gpa)));
  listed.push_back(place("APIC", madt(platform)));
  const Table list = place("XSDT", xsdt(listed));
  std::vector<Table> all{{"RSD PTR ", Gpa{kTablesGpa}, rsdp(list.gpa)}, list, devices};
  all.insert(all.end(), listed.begin(), listed.end());
  return all;
}

std::expected<Gpa, Error> write_tables(GuestMemory& memory, const Platform& platform) {
  const auto refuse = [](const char* reason) {
    return std::unexpected(Error{"start VM", "ACPI tables", reason, Status::kFailed});
  };
  for (const Table& table : build_tables(platform)) {
    if (table.gpa.value + table.bytes.size() > kTablesEnd)
      return refuse("too large for their place below 1 MiB");
    if (!memory.write(table.gpa, table.bytes))
      return refuse("memory ends before their place below 1 MiB");
  }
  if (!memory.write(Gpa{kGenerationIdGpa}, platform.generation_id))
    return refuse("memory ends before the generation ID's place below 1 MiB");
  return Gpa{kTablesGpa};
}

} // namespace stopvisor::vmm::acpi
