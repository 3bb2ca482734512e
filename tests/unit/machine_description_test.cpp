// SPDX-License-Identifier: Apache-2.0
// The machine description: read back with libfdt, and decompiled by dtc without a warning.
#include "vmm/machine_description.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <libfdt.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>

namespace stopvisor::vmm {
namespace {

MachineDescription full_machine(uint32_t cpus = 4) {
  MachineDescription machine;
  machine.name = "vm1";
  machine.memory = {{Gpa{0}, 0xc000'0000}, {Gpa{0x1'0000'0000}, 0x4000'0000}};
  machine.cpus = cpus;
  machine.pit = true;
  machine.serial.emplace();
  machine.doorbell = {0x5f0, 0x5000, 0x400, Gpa{0xd000'0000}, 0x4000};
  machine.power = {0x600, 4, 9};
  machine.cpu_device = {0x620, 0x6000, 10};
  machine.resets = {{0x64, 0xfe, 0xff}, {0xcf9, 0x06, 0x06}};
  machine.bootargs = "console=ttyS0 quiet";
  machine.initrd = {Gpa{0xbfe0'0000}, 0x12345};
  return machine;
}

std::string text_of(const std::vector<std::byte>& tree, const char* path, const char* name) {
  const int node = fdt_path_offset(tree.data(), path);
  int length = 0;
  const void* value = node < 0 ? nullptr : fdt_getprop(tree.data(), node, name, &length);
  return value == nullptr ? "absent"
                          : std::string(static_cast<const char*>(value), static_cast<size_t>(length) - 1);
}

std::vector<uint32_t> cells_of(const std::vector<std::byte>& tree, const char* path, const char* name) {
  const int node = fdt_path_offset(tree.data(), path);
  int length = 0;
  const auto* value =
      node < 0 ? nullptr : static_cast<const fdt32_t*>(fdt_getprop(tree.data(), node, name, &length));
  std::vector<uint32_t> cells;
  for (int i = 0; value != nullptr && i < length / 4; ++i)
    cells.push_back(fdt32_to_cpu(value[i]));
  return cells;
}

using Cells = std::vector<uint32_t>;

TEST(MachineDescription, HoldsWhatWasDescribed) {
  const auto made = describe_machine(full_machine());
  ASSERT_TRUE(made) << made.error().message();
  const std::vector<std::byte>& tree = *made;
  ASSERT_EQ(fdt_check_header(tree.data()), 0);
  ASSERT_EQ(fdt_totalsize(tree.data()), tree.size());

  EXPECT_EQ(text_of(tree, "/", "compatible"), "stopvisor,machine-v1");
  EXPECT_EQ(text_of(tree, "/", "stopvisor,name"), "vm1");
  EXPECT_EQ(text_of(tree, "/chosen", "bootargs"), "console=ttyS0 quiet");
  EXPECT_EQ(cells_of(tree, "/chosen", "linux,initrd-start"), (Cells{0, 0xbfe0'0000}));
  EXPECT_EQ(cells_of(tree, "/chosen", "linux,initrd-end"), (Cells{0, 0xbfe1'2345}));
  EXPECT_EQ(cells_of(tree, "/memory@0", "reg"), (Cells{0, 0, 0, 0xc000'0000}));
  EXPECT_EQ(cells_of(tree, "/memory@100000000", "reg"), (Cells{1, 0, 0, 0x4000'0000}));
  EXPECT_EQ(cells_of(tree, "/cpus/cpu@3", "reg"), (Cells{3}));
  EXPECT_TRUE(cells_of(tree, "/cpus/cpu@4", "reg").empty());
  EXPECT_EQ(text_of(tree, "/cpus/cpu@3", "status"), "absent");
  EXPECT_EQ(cells_of(tree, "/isa/cpu-device@i6000", "reg"), (Cells{1, 0x6000, 16, 1, 0x620, 8}));
  EXPECT_EQ(cells_of(tree, "/isa/cpu-device@i6000", "interrupts"), (Cells{10, 0}));
  EXPECT_EQ(cells_of(tree, "/isa/serial@i3f8", "interrupts"), (Cells{4, 0}));
  EXPECT_EQ(cells_of(tree, "/isa/reset@icf9", "value"), (Cells{6}));
  EXPECT_EQ(cells_of(tree, "/isa/power@i600", "reg"), (Cells{1, 0x600, 4}));
  EXPECT_EQ(cells_of(tree, "/doorbell@d0000000", "stopvisor,ports"), (Cells{0x5000, 0x400}));
}

TEST(MachineDescription, DisablesTheCpusTheGuestIsToLeaveAlone) {
  auto machine = full_machine();
  machine.enabled_cpus = stopper::CpuMask::first_n(2);
  const auto tree = describe_machine(machine);
  ASSERT_TRUE(tree) << tree.error().message();
  EXPECT_EQ(text_of(*tree, "/cpus/cpu@1", "status"), "absent");
  EXPECT_EQ(text_of(*tree, "/cpus/cpu@2", "status"), "disabled");
  EXPECT_EQ(cells_of(*tree, "/cpus/cpu@3", "reg"), (Cells{3}));
}

TEST(MachineDescription, GrowsWithItsCpus) {
  const auto tree = describe_machine(full_machine(1024));
  ASSERT_TRUE(tree) << tree.error().message();
  EXPECT_EQ(cells_of(*tree, "/cpus/cpu@3ff", "reg"), (Cells{0x3ff}));
}

TEST(MachineDescription, ImpossibleMachinesAreRefused) {
  auto machine = full_machine(0);
  EXPECT_EQ(describe_machine(machine).error().message(), "describe machine: no vCPU");
  machine = full_machine();
  machine.memory.clear();
  EXPECT_EQ(describe_machine(machine).error().message(), "describe machine: no memory");
  machine = full_machine();
  machine.bootargs.push_back('\0');
  EXPECT_EQ(describe_machine(machine).error().status, Status::kUsage);
}

// What dtc says to `tree` on stderr, and its exit status; nothing where there is no dtc.
struct DtcAnswer {
  int status = -1;
  std::string complaints;
};
std::optional<DtcAnswer> ask_dtc(const std::vector<std::byte>& tree) {
  std::string folder = (std::filesystem::temp_directory_path() / "stopvisor-dtc-XXXXXX").string();
  if (::mkdtemp(folder.data()) == nullptr)
    return DtcAnswer{-1, "no temporary folder"};
  const std::string dtb = folder + "/m.dtb", dts = folder + "/m.dts", complaints = folder + "/stderr";
  std::ofstream(dtb, std::ios::binary)
      .write(reinterpret_cast<const char*>(tree.data()), static_cast<std::streamsize>(tree.size()));
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, complaints.c_str(), O_WRONLY | O_CREAT, 0600);
  const std::array<const char*, 9> words{"dtc", "-I", "dtb", "-O", "dts", "-o", dts.c_str(), dtb.c_str(), nullptr};
  pid_t child = 0;
  const int error = ::posix_spawnp(&child, "dtc", &actions, nullptr, const_cast<char**>(words.data()), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  DtcAnswer answer;
  if (error == 0) {
    ::waitpid(child, &answer.status, 0);
    std::ostringstream text;
    text << std::ifstream(complaints).rdbuf();
    answer.complaints = text.str();
  }
  std::filesystem::remove_all(folder);
  if (error != 0)
    return std::nullopt;
  return answer;
}

void expect_dtc_content(const MachineDescription& machine) {
  const auto tree = describe_machine(machine);
  ASSERT_TRUE(tree) << tree.error().message();
  const auto answer = ask_dtc(*tree);
  if (!answer)
    GTEST_SKIP() << "no dtc (package device-tree-compiler)";
  EXPECT_EQ(answer->status, 0);
  EXPECT_EQ(answer->complaints, "");
}

TEST(MachineDescription, DtcDecompilesTheFullMachineWithoutAWarning) {
  auto machine = full_machine(32);
  machine.enabled_cpus = stopper::CpuMask::first_n(2);
  expect_dtc_content(machine);
}

TEST(MachineDescription, DtcDecompilesTheBareMachineWithoutAWarning) {
  MachineDescription machine;
  machine.memory = {{Gpa{0}, 0x100'0000}};
  machine.interrupt_controllers = false;
  machine.serial.emplace();
  expect_dtc_content(machine);
}

} // namespace
} // namespace stopvisor::vmm
