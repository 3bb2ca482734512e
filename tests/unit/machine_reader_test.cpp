// SPDX-License-Identifier: Apache-2.0
// Machines read back from their descriptions, and everything that is none.
#include "vmm/machine_reader.h"

#include <gtest/gtest.h>
#include <libfdt.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "vmm/machine_file.h"
#include "vmm/vm_boot.h"

namespace stopvisor::vmm {
namespace {

using Bytes = std::vector<std::byte>;

VmConfig full_config() {
  VmConfig config;
  config.name = "vm1";
  config.cpus = 2;
  config.max_cpus = 5;
  config.memory_bytes = 4ULL << 30; // on both sides of the hole
  config.backing = MemoryBacking::kMemfd;
  config.kernel = "/boot/vmlinux";
  config.initrd = "/boot/initrd.img";
  config.cmdline = "console=ttyS0 quiet";
  config.disks = {{"/srv/a.img", false}, {"/srv/b.img", true}};
  config.nets = {{"tap0", parse_mac("02:00:00:00:00:07")}};
  return config;
}

Bytes described(const VmConfig& config) {
  auto tree = describe_machine(machine_of(config, stopper::CpuMask::first_n(config.cpus), true));
  EXPECT_TRUE(tree) << tree.error().message();
  return tree ? *tree : Bytes{};
}

TEST(MachineReader, ReadsBackWhatWasWritten) {
  const VmConfig before = full_config();
  const auto after = read_machine(described(before));
  ASSERT_TRUE(after) << after.error().message();
  EXPECT_EQ(after->name, before.name);
  EXPECT_EQ(after->cpus, before.cpus);
  EXPECT_EQ(after->max_cpus, before.max_cpus);
  EXPECT_EQ(after->memory_bytes, before.memory_bytes);
  EXPECT_EQ(after->backing, before.backing);
  EXPECT_EQ(after->kernel, before.kernel);
  EXPECT_EQ(after->initrd, before.initrd);
  EXPECT_EQ(after->cmdline, before.cmdline);
  ASSERT_EQ(after->disks.size(), 2u);
  EXPECT_EQ(after->disks[1].path, "/srv/b.img");
  EXPECT_TRUE(after->disks[1].read_only);
  ASSERT_EQ(after->nets.size(), 1u);
  EXPECT_EQ(after->nets[0].tap, "tap0");
  EXPECT_EQ(described(*after), described(before));
}

TEST(MachineReader, ReadsBackTheSmallestAndTheLargest) {
  VmConfig config;
  config.max_cpus = 1;
  config.memory_bytes = 1 << 20;
  EXPECT_EQ(described(read_machine(described(config)).value()), described(config));
  config.cpus = config.max_cpus = 1024;
  config.memory_bytes = 1ULL << 40;
  EXPECT_EQ(described(read_machine(described(config)).value()), described(config));
}

// A change to a good tree, with libfdt's own writing calls.
class Changed {
public:
  explicit Changed(const VmConfig& config = full_config()) : tree_(described(config)) {
    tree_.resize(tree_.size() + 4096);
    EXPECT_EQ(fdt_open_into(tree_.data(), tree_.data(), static_cast<int>(tree_.size())), 0);
  }
  Changed& cells(const char* path, const char* property, std::initializer_list<uint32_t> values) {
    Bytes bytes;
    for (const uint32_t value : values)
      for (int shift = 24; shift >= 0; shift -= 8)
        bytes.push_back(static_cast<std::byte>(value >> shift));
    return set(path, property, bytes.data(), bytes.size());
  }
  Changed& text(const char* path, const char* property, std::string_view value) {
    const std::string ended(value);
    return set(path, property, ended.c_str(), ended.size() + 1);
  }
  Changed& bytes(const char* path, const char* property, std::string_view value) {
    return set(path, property, value.data(), value.size());
  }
  Changed& without(const char* path) {
    EXPECT_EQ(fdt_del_node(tree_.data(), at(path)), 0);
    return *this;
  }
  Changed& without(const char* path, const char* property) {
    EXPECT_EQ(fdt_delprop(tree_.data(), at(path), property), 0);
    return *this;
  }
  Changed& node(const char* parent, const char* name) {
    EXPECT_GE(fdt_add_subnode(tree_.data(), at(parent), name), 0);
    return *this;
  }
  [[nodiscard]] std::expected<VmConfig, Error> read() const { return read_machine(tree_); }
  // The whole error, which there must be.
  [[nodiscard]] std::string refusal() const {
    const auto config = read();
    if (config)
      return "none";
    EXPECT_EQ(config.error().status, Status::kUsage);
    return config.error().message();
  }

private:
  int at(const char* path) {
    const int node = fdt_path_offset(tree_.data(), path);
    EXPECT_GE(node, 0) << path;
    return node;
  }
  Changed& set(const char* path, const char* property, const void* value, size_t size) {
    EXPECT_EQ(fdt_setprop(tree_.data(), at(path), property, value, static_cast<int>(size)), 0);
    return *this;
  }
  Bytes tree_;
};

TEST(MachineReader, WhatEveryMachineHasMayBeLeftOut) {
  const auto config = Changed()
                          .without("/isa")
                          .without("/doorbell@d0000000")
                          .without("/interrupt-controller@fec00000")
                          .without("/chosen", "stdout-path")
                          .without("/", "model")
                          .read();
  ASSERT_TRUE(config) << config.error().message();
  EXPECT_EQ(described(*config), described(full_config()));
}

TEST(MachineReader, LabelsAndAnInitrdsPlaceSayNothing) {
  const auto config = Changed()
                          .cells("/memory@0", "phandle", {77})
                          .cells("/chosen", "linux,initrd-start", {0, 1})
                          .text("/cpus/cpu@1", "status", "okay")
                          .text("/", "model", "mine")
                          .read();
  ASSERT_TRUE(config) << config.error().message();
  EXPECT_EQ(described(*config), described(full_config()));
}

TEST(MachineReader, OtherMachinesAreRefusedByName) {
  const std::string is = "machine description: ";
  EXPECT_EQ(Changed().text("/", "compatible", "pc").refusal(),
            is + "/: compatible: must be \"stopvisor,machine-v1\"");
  EXPECT_EQ(Changed().without("/", "compatible").refusal(), is + "/: compatible: must be \"stopvisor,machine-v1\"");
  EXPECT_EQ(Changed().text("/", "stopvisor,memory-backing", "disk").refusal(),
            is + "/: stopvisor,memory-backing: must be anon, memfd or hugetlb");
  EXPECT_EQ(Changed().cells("/isa/serial@i3f8", "reg", {1, 0x2f8, 8}).refusal(),
            is + "/isa/serial@i3f8: reg: is otherwise in the machine this describes");
  EXPECT_EQ(Changed().cells("/isa/serial@i3f8", "interrupts", {5, 0}).refusal(),
            is + "/isa/serial@i3f8: interrupts: is otherwise in the machine this describes");
  EXPECT_EQ(Changed().node("/isa", "serial@i2f8").refusal(),
            is + "/isa/serial@i2f8: no such part, or not there, in the machine this describes");
  EXPECT_EQ(Changed().text("/chosen", "stopvisor,kernle", "x").refusal(),
            is + "/chosen: stopvisor,kernle: no such property in the machine this describes");
  EXPECT_EQ(Changed().cells("/interrupt-controller@fec00000", "phandle", {2}).refusal(),
            is + "/interrupt-controller@fec00000: phandle: is otherwise in the machine this describes");
  EXPECT_EQ(Changed().text("/chosen", "\x1b[31m", "x").refusal(),
            is + "/chosen: ?[31m: no such property in the machine this describes");
}

TEST(MachineReader, ImpossibleMemoryIsRefusedByName) {
  const std::string is = "machine description: ";
  EXPECT_EQ(Changed().without("/memory@0").without("/memory@100000000").refusal(),
            is + "/memory: the machine has no memory");
  EXPECT_EQ(Changed().cells("/memory@0", "reg", {0, 0, 0}).refusal(),
            is + "/memory@0: reg: must be 4 cells of 32 bits");
  EXPECT_EQ(Changed().without("/memory@0", "reg").refusal(), is + "/memory@0: reg: is missing");
  EXPECT_EQ(Changed().cells("/memory@0", "reg", {0, 0, 0xffffffff, 0xffffffff}).refusal(),
            is + "/memory@100000000: reg: is too large");
  EXPECT_EQ(Changed().without("/memory@100000000").cells("/memory@0", "reg", {0, 0, 1, 0}).refusal(),
            is + "/memory@0: reg: is otherwise in the machine this describes"); // over the hole
}

TEST(MachineReader, ImpossibleCpusAreRefusedByName) {
  const std::string is = "machine description: ";
  EXPECT_EQ(Changed().without("/cpus").refusal(), is + "/cpus: the machine has no vCPU");
  EXPECT_EQ(Changed().text("/cpus/cpu@1", "status", "fail").refusal(),
            is + "/cpus/cpu@1: status: must be \"okay\" or \"disabled\"");
  EXPECT_EQ(Changed().cells("/cpus/cpu@1", "reg", {0}).refusal(),
            is + "/cpus/cpu@1: reg: is another vCPU's already");
  EXPECT_EQ(Changed().cells("/cpus/cpu@1", "reg", {70}).refusal(),
            is + "/cpus: vCPU 1 is not there, and vCPU 2 is: they are numbered from 0 on");
  EXPECT_EQ(Changed().text("/cpus/cpu@0", "status", "disabled").refusal(),
            is + "/cpus: vCPU 1 is enabled and vCPU 0 is not: a machine starts with its first vCPUs");
}

TEST(MachineReader, ImpossibleDevicesAreRefusedByName) {
  const std::string is = "machine description: ";
  const char* const disk = "/virtio@d0100000";
  EXPECT_EQ(Changed().bytes(disk, "compatible", std::string_view("stopvisor,gpu-v1\0virtio,mmio\0", 29)).refusal(),
            is + "/virtio@d0100000: compatible: there is no such device");
  EXPECT_EQ(Changed().text(disk, "stopvisor,colour", "red").refusal(),
            is + "/virtio@d0100000: stopvisor,colour: no such property in the machine this describes");
  EXPECT_EQ(Changed().cells(disk, "interrupts", {9, 0}).refusal(),
            is + "/virtio@d0100000: interrupts: is otherwise in the machine this describes");
  EXPECT_EQ(Changed().bytes(disk, "stopvisor,path", "no end").refusal(),
            is + "/virtio@d0100000: stopvisor,path: must be one text");
  EXPECT_NE(Changed().without(disk, "stopvisor,path").refusal(), "none");
  EXPECT_NE(Changed().without(disk).refusal(), "none"); // the others are no longer in their slots
}

TEST(MachineReader, PiecesOfATreeAreRefused) {
  const Bytes whole = described(full_config());
  for (size_t size = 0; size < whole.size(); size += 8)
    EXPECT_FALSE(read_machine(std::span(whole).first(size))) << size;
  EXPECT_FALSE(read_machine(Bytes(kMaxMachineBytes + 8)));
}

// Every tree is a machine or an error; with a sanitizer this test says that none reads outside of its bytes.
TEST(MachineReader, NoChangedBytesBreakIt) {
  const Bytes whole = described(full_config());
  uint32_t state = 20261123;
  const auto random = [&state](size_t below) {
    state = state * 1664525 + 1013904223;
    return static_cast<size_t>(state >> 8) % below;
  };
  size_t machines = 0;
  for (int i = 0; i < 20'000; ++i) {
    Bytes changed = whole;
    for (size_t change = 0, changes = 1 + random(4); change < changes; ++change)
      changed[random(random(3) == 0 ? 64 : changed.size())] = static_cast<std::byte>(random(256));
    machines += read_machine(changed).has_value() ? 1 : 0;
  }
  EXPECT_GT(machines, 0u); // a changed letter of a path
  EXPECT_LT(machines, 20'000u);
}

class MachineFile : public ::testing::Test {
protected:
  void SetUp() override {
    folder_ = (std::filesystem::temp_directory_path() / "stopvisor-machine-XXXXXX").string();
    ASSERT_NE(::mkdtemp(folder_.data()), nullptr);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string file(const std::string& name, std::string_view content) const {
    std::ofstream(folder_ + "/" + name, std::ios::binary) << content;
    return folder_ + "/" + name;
  }
  std::string folder_;
};

constexpr std::string_view kSource = R"(/dts-v1/;
/ {
  compatible = "stopvisor,machine-v1";
  #address-cells = <2>; #size-cells = <2>;
  chosen { stopvisor,kernel = "linux/vmlinux"; bootargs = "quiet"; };
  cpus {
    #address-cells = <1>; #size-cells = <0>;
    cpu@0 { device_type = "cpu"; compatible = "stopvisor,x86-64"; reg = <0>; };
  };
  memory@0 { device_type = "memory"; reg = <0 0 0 0x8000000>; };
};
)";

TEST_F(MachineFile, TreeIsToldByItsContentAndPathsBeginAtItsFolder) {
  VmConfig config = full_config();
  config.kernel = "linux/vmlinux";
  const Bytes tree = described(config);
  const auto read =
      read_machine_file(file("machine.dts", {reinterpret_cast<const char*>(tree.data()), tree.size()}));
  ASSERT_TRUE(read) << read.error().message();
  EXPECT_EQ(read->kernel, folder_ + "/linux/vmlinux");
  EXPECT_EQ(read->disks[0].path, "/srv/a.img");
}

TEST_F(MachineFile, SourceIsCompiled) {
  if (std::system("dtc --version > /dev/null 2>&1") != 0)
    GTEST_SKIP() << "no dtc (package device-tree-compiler)";
  const auto read = read_machine_file(file("machine", kSource));
  ASSERT_TRUE(read) << read.error().message();
  EXPECT_EQ(read->kernel, folder_ + "/linux/vmlinux");
  EXPECT_EQ(read->memory_bytes, 128ULL << 20);
  EXPECT_EQ(read->max_cpus, 1u);
  EXPECT_EQ(read->cmdline, "quiet");
}

TEST_F(MachineFile, BadSourceIsRefusedInDtcsWords) {
  if (std::system("dtc --version > /dev/null 2>&1") != 0)
    GTEST_SKIP() << "no dtc (package device-tree-compiler)";
  const std::string path = file("machine.dts", "/dts-v1/;\n/ { nonsense };\n");
  const auto read = read_machine_file(path);
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().status, Status::kUsage);
  EXPECT_TRUE(read.error().message().starts_with("machine file: " + path + ": dtc refuses it: "))
      << read.error().message();
  EXPECT_NE(read.error().reason.find("syntax error"), std::string::npos) << read.error().message();
}

TEST_F(MachineFile, WhatIsWrongInsideIsNamedWithTheFile) {
  const std::string path = file("machine.dtb", std::string("\xd0\x0d\xfe\xed", 4) + std::string(100, 'x'));
  const auto read = read_machine_file(path);
  ASSERT_FALSE(read);
  EXPECT_TRUE(read.error().message().starts_with("machine file: " + path + ": not a whole flattened device tree"))
      << read.error().message();
  EXPECT_EQ(read_machine_file(folder_ + "/none").error().status, Status::kFailed);
}

} // namespace
} // namespace stopvisor::vmm
