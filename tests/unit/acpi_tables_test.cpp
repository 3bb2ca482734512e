// SPDX-License-Identifier: Apache-2.0
// The ACPI tables as a guest reads them: found from the RSDP, checksums right, fields where ACPI 6.5 has them; and
// as iasl, ACPI's own compiler, reads them.
#include "vmm/acpi/tables.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>
#include <sstream>

#include "vmm/units.h"

namespace stopvisor::vmm::acpi {
namespace {

using aml::Bytes;

Platform full_platform() {
  Platform platform;
  platform.apic_ids = {0, 1, 254, 255, 300};
  for (uint32_t slot = 0; slot < 12; ++slot)
    platform.virtio.push_back({Gpa{0xd010'0000 + uint64_t{slot} * 0x1000}, 12 + slot});
  platform.keyboard = true;
  platform.generation_id.fill(std::byte{0x5a});
  return platform;
}

template <typename T>
T field(const Bytes& table, size_t offset) {
  T value{};
  if (offset + sizeof value > table.size())
    ADD_FAILURE() << "no field at " << offset;
  else
    std::memcpy(&value, table.data() + offset, sizeof value);
  return value;
}

uint8_t sum(const Bytes& table, size_t length) {
  return std::accumulate(
      table.begin(), table.begin() + static_cast<ptrdiff_t>(length), uint8_t{0},
      [](uint8_t total, std::byte b) { return static_cast<uint8_t>(total + std::to_integer<uint8_t>(b)); });
}

Bytes table_of(const Platform& platform, std::string_view signature) {
  for (const Table& table : build_tables(platform))
    if (table.signature == signature)
      return table.bytes;
  return {};
}

class AcpiInMemory : public ::testing::Test {
protected:
  void SetUp() override {
    auto created = GuestMemory::create(4 << 20, MemoryBacking::kAnonymous);
    ASSERT_TRUE(created);
    memory_ = std::make_unique<GuestMemory>(*std::move(created));
  }
  Bytes bytes_at(uint64_t gpa, size_t size) {
    Bytes bytes(size);
    EXPECT_TRUE(memory_->read(Gpa{gpa}, bytes));
    return bytes;
  }
  // A table by its address, as long as its header says.
  Bytes table_at(uint64_t gpa) { return bytes_at(gpa, field<uint32_t>(bytes_at(gpa, 8), 4)); }

  std::unique_ptr<GuestMemory> memory_;
};

TEST_F(AcpiInMemory, EveryTableIsFoundFromTheRsdpAndAddsUp) {
  const auto rsdp_gpa = write_tables(*memory_, full_platform());
  ASSERT_TRUE(rsdp_gpa) << rsdp_gpa.error().message();

  const Bytes rsdp = bytes_at(rsdp_gpa->value, 36);
  EXPECT_EQ(std::memcmp(rsdp.data(), "RSD PTR ", 8), 0);
  EXPECT_EQ(sum(rsdp, 20), 0);
  EXPECT_EQ(sum(rsdp, 36), 0);
  EXPECT_EQ(field<uint32_t>(rsdp, 16), 0U); // no RSDT
  const Bytes xsdt = table_at(field<uint64_t>(rsdp, 24));
  EXPECT_EQ(sum(xsdt, xsdt.size()), 0);
  std::string found;
  for (size_t at = 36; at + 8 <= xsdt.size(); at += 8) {
    const Bytes table = table_at(field<uint64_t>(xsdt, at));
    EXPECT_EQ(sum(table, table.size()), 0);
    found.append(reinterpret_cast<const char*>(table.data()), 4).append(" ");
    if (found.ends_with("FACP ")) {
      const Bytes dsdt = table_at(field<uint64_t>(table, 140));
      EXPECT_EQ(std::memcmp(dsdt.data(), "DSDT", 4), 0);
      EXPECT_EQ(sum(dsdt, dsdt.size()), 0);
    }
  }
  EXPECT_EQ(found, "FACP APIC ");
  EXPECT_EQ(bytes_at(kGenerationIdGpa, 16), Bytes(16, std::byte{0x5a}));
}

TEST_F(AcpiInMemory, TablesTooLargeForTheirPlaceAreRefused) {
  Platform platform;
  platform.apic_ids.resize(20'000);
  const auto written = write_tables(*memory_, platform);
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().message(), "start VM: ACPI tables: too large for their place below 1 MiB");
}

TEST(AcpiTables, DoNotOverlapWithAsManyCpusAsThereCanBe) {
  Platform platform = full_platform();
  platform.apic_ids.resize(1024);
  std::iota(platform.apic_ids.begin(), platform.apic_ids.end(), 0U);
  auto tables = build_tables(platform);
  std::ranges::sort(tables, {}, [](const Table& table) { return table.gpa.value; });
  uint64_t end = kTablesGpa;
  for (const Table& table : tables) {
    EXPECT_GE(table.gpa.value, end) << table.signature;
    end = table.gpa.value + table.bytes.size();
  }
  EXPECT_LE(end, kTablesEnd);
}

TEST(AcpiTables, FadtIsHardwareReducedWithItsRegisters) {
  const Bytes fadt = table_of(full_platform(), "FACP");
  ASSERT_EQ(fadt.size(), 276U);
  EXPECT_EQ(field<uint8_t>(fadt, 8), 6); // revision
  const auto flags = field<uint32_t>(fadt, 112);
  EXPECT_NE(flags & 1U << 20, 0U); // HW_REDUCED_ACPI
  EXPECT_NE(flags & 1U << 10, 0U); // RESET_REG_SUP
  EXPECT_EQ(field<uint16_t>(fadt, 109), 0x36);
  const auto expect_port = [&fadt](size_t offset, uint64_t port) {
    EXPECT_EQ(field<uint8_t>(fadt, offset), 1) << offset; // system I/O
    EXPECT_EQ(field<uint8_t>(fadt, offset + 1), 8) << offset;
    EXPECT_EQ(field<uint64_t>(fadt, offset + 4), port) << offset;
  };
  expect_port(116, 0x642);
  EXPECT_EQ(field<uint8_t>(fadt, 128), 1);
  expect_port(244, 0x640);
  expect_port(256, 0x641);
}

TEST(AcpiTables, MadtHasWideIdsAsX2apics) {
  const Bytes madt = table_of(full_platform(), "APIC");
  std::string seen;
  for (size_t at = 44; at < madt.size(); at += field<uint8_t>(madt, at + 1)) {
    const auto type = field<uint8_t>(madt, at);
    ASSERT_NE(field<uint8_t>(madt, at + 1), 0);
    if (type == 0)
      seen +=
          "lapic " + std::to_string(field<uint8_t>(madt, at + 3)) + (madt[at + 4] == std::byte{1} ? "+ " : "- ");
    if (type == 9)
      seen +=
          "x2apic " + std::to_string(field<uint32_t>(madt, at + 4)) + (madt[at + 8] == std::byte{1} ? "+ " : "- ");
    if (type == 1)
      seen += "ioapic " + to_hex(field<uint32_t>(madt, at + 4)) + " ";
    if (type == 4)
      seen += "nmi ";
    if (type == 10)
      seen += "x2nmi ";
  }
  EXPECT_EQ(seen, "lapic 0+ lapic 1+ lapic 254+ x2apic 255+ x2apic 300+ ioapic 0xfec00000 nmi x2nmi ");
}

// iasl takes a table apart and puts it together again; what comes out must be what went in.
class Iasl : public ::testing::Test {
protected:
  void SetUp() override {
    if (std::system("iasl -v >/dev/null 2>&1") != 0) // NOLINT(concurrency-mt-unsafe): a test of one thread
      GTEST_SKIP() << "skipped: no iasl (package acpica-tools)";
    std::string name = (std::filesystem::temp_directory_path() / "stopvisor-iasl-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override {
    if (!folder_.empty())
      std::filesystem::remove_all(folder_);
  }
  void write(const std::string& name, const Bytes& bytes) {
    std::ofstream(folder_ / name, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  }
  std::string read(const std::string& name) {
    std::ifstream file(folder_ / name, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  // What it said; empty where it could not be run.
  std::string run(const std::string& arguments) {
    const std::string command = "cd '" + folder_.string() + "' && iasl " + arguments + " >out 2>&1";
    status_ = std::system(command.c_str()); // NOLINT(concurrency-mt-unsafe): as above
    return read("out");
  }

  std::filesystem::path folder_;
  int status_ = 0;
};

TEST_F(Iasl, ReadsTheDsdtAndCompilesItToTheSameBytes) {
  const Bytes dsdt = table_of(full_platform(), "DSDT");
  write("dsdt.dat", dsdt);

  const std::string taken_apart = run("-d dsdt.dat");
  ASSERT_EQ(status_, 0) << taken_apart;
  const std::string source = read("dsdt.dsl");
  EXPECT_EQ(source.find("Unknown"), std::string::npos) << source;
  const std::string compiled = run("-on -p again dsdt.dsl"); // names stay as long as they are

  EXPECT_EQ(status_, 0) << compiled;
  EXPECT_NE(compiled.find("0 Errors, 0 Warnings"), std::string::npos) << compiled;
  const std::string again = read("again.aml");
  // The header has iasl's name in it.
  ASSERT_EQ(again.size(), dsdt.size()) << source;
  EXPECT_EQ(std::memcmp(again.data() + 36, dsdt.data() + 36, dsdt.size() - 36), 0) << source;
}

TEST_F(Iasl, FindsNothingWrongInTheOtherTables) {
  for (const Table& table : build_tables(full_platform())) {
    if (table.signature == "RSD PTR " || table.signature == "DSDT")
      continue; // one has no header, the other is AML
    write("table.dat", table.bytes);
    const std::string said = run("-d table.dat");
    EXPECT_EQ(status_, 0) << table.signature << "\n" << said;
    const std::string source = read("table.dsl");
    EXPECT_NE(source.find("Signature : \"" + table.signature + "\""), std::string::npos) << source;
    for (const char* complaint : {"Error", "Invalid", "Incorrect", "Unknown", "rror:"})
      EXPECT_EQ((said + source).find(complaint), std::string::npos) << table.signature << "\n" << said << source;
  }
}

} // namespace
} // namespace stopvisor::vmm::acpi
