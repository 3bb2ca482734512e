// SPDX-License-Identifier: Apache-2.0
#include "vmm/machine_description.h"

#include <algorithm>
#include <initializer_list>
#include <string_view>
#include <utility>

#include "vmm/tree_writer.h"
#include "vmm/units.h"

namespace stopvisor::vmm {
namespace {

constexpr uint32_t kIoApicPhandle = 1;
constexpr uint64_t kIoApicGpa = 0xfec0'0000;
constexpr uint64_t kLocalApicGpa = 0xfee0'0000;
constexpr uint32_t kApicBytes = 0x1000;
constexpr uint32_t kUartClockHz = 1'843'200;
constexpr uint32_t kPicPort = 0x20, kPicSlavePort = 0xa0, kPitPort = 0x40;
// Linux's dt_ioapic types, second cell of an I/O APIC interrupt: 0 is a rising edge, as ISA has it.
constexpr uint32_t kEdgeRising = 0;
constexpr uint32_t kIoSpace = 1; // first cell of an ISA address

constexpr size_t kFirstTreeBytes = 16 << 10;
constexpr size_t kMaxTreeBytes = 4 << 20;

// "name@1f": unit addresses are hexadecimal without 0x.
std::string unit(std::string_view name, uint64_t address) {
  return std::string(name) + "@" + to_hex(address).substr(2);
}
std::string isa_unit(std::string_view name, uint64_t port) {
  return std::string(name) + "@i" + to_hex(port).substr(2);
}

void write_interrupt(TreeWriter& tree, const MachineDescription& machine, uint32_t gsi) {
  if (machine.interrupt_controllers)
    tree.cells("interrupts", {gsi, kEdgeRising});
}

void write_chosen(TreeWriter& tree, const MachineDescription& machine) {
  const auto node = tree.node("chosen");
  tree.text("bootargs", machine.bootargs);
  if (!machine.kernel.empty())
    tree.text(kKernelProperty, machine.kernel);
  if (!machine.initrd_path.empty())
    tree.text(kInitrdProperty, machine.initrd_path);
  if (machine.initrd) {
    tree.number("linux,initrd-start", machine.initrd->start.value);
    tree.number("linux,initrd-end", machine.initrd->start.value + machine.initrd->size_bytes);
  }
  if (machine.serial)
    tree.text("stdout-path", "/isa/" + isa_unit("serial", machine.serial->port));
}

void write_cpus(TreeWriter& tree, const MachineDescription& machine) {
  const auto node = tree.node("cpus");
  tree.cells("#address-cells", {1});
  tree.cells("#size-cells", {0});
  for (uint32_t cpu = 0; cpu < machine.cpus; ++cpu) {
    const auto cpu_node = tree.node(unit("cpu", cpu));
    tree.text("device_type", "cpu");
    tree.text("compatible", "stopvisor,x86-64");
    tree.cells("reg", {cpu});
    if (!machine.enabled_cpus.test(cpu))
      tree.text("status", "disabled");
  }
}

void write_memory(TreeWriter& tree, const MachineDescription& machine) {
  for (const MachineDescription::Memory& memory : machine.memory) {
    const auto node = tree.node(unit("memory", memory.base.value));
    tree.text("device_type", "memory");
    tree.range("reg", memory.base.value, memory.size_bytes);
  }
}

void write_apics(TreeWriter& tree) {
  {
    const auto node = tree.node(unit("interrupt-controller", kIoApicGpa));
    tree.text("compatible", "intel,ce4100-ioapic");
    tree.range("reg", kIoApicGpa, kApicBytes);
    tree.flag("interrupt-controller");
    tree.cells("#interrupt-cells", {2});
    tree.cells("#address-cells", {0});
    tree.cells("phandle", {kIoApicPhandle});
  }
  const auto node = tree.node(unit("interrupt-controller", kLocalApicGpa));
  tree.text("compatible", "intel,ce4100-lapic");
  tree.range("reg", kLocalApicGpa, kApicBytes);
  tree.flag("interrupt-controller");
  tree.cells("#interrupt-cells", {2});
  tree.cells("#address-cells", {0});
}

void write_pics(TreeWriter& tree) {
  const auto node = tree.node(isa_unit("interrupt-controller", kPicPort));
  tree.text("compatible", "intel,i8259");
  tree.cells("reg", {kIoSpace, kPicPort, 2, kIoSpace, kPicSlavePort, 2});
  tree.flag("interrupt-controller");
  tree.cells("#interrupt-cells", {2});
  tree.cells("#address-cells", {0});
}

void write_pit(TreeWriter& tree, const MachineDescription& machine) {
  const auto node = tree.node(isa_unit("timer", kPitPort));
  tree.text("compatible", "intel,i8254");
  tree.cells("reg", {kIoSpace, kPitPort, 4});
  write_interrupt(tree, machine, 0);
}

void write_serial(TreeWriter& tree, const MachineDescription& machine, const MachineDescription::Serial& serial) {
  const auto node = tree.node(isa_unit("serial", serial.port));
  tree.text("compatible", "ns16550a");
  tree.cells("reg", {kIoSpace, serial.port, 8});
  tree.cells("clock-frequency", {kUartClockHz});
  write_interrupt(tree, machine, serial.gsi);
}

void write_power(TreeWriter& tree, const MachineDescription& machine, const MachineDescription::Power& power) {
  const auto node = tree.node(isa_unit("power", power.port));
  tree.text("compatible", "stopvisor,power-v1");
  tree.cells("reg", {kIoSpace, power.port, power.port_bytes});
  write_interrupt(tree, machine, power.gsi);
}

void write_cpu_device(TreeWriter& tree, const MachineDescription& machine,
                      const MachineDescription::CpuDevice& device) {
  const auto node = tree.node(isa_unit("cpu-device", device.port_base));
  tree.text("compatible", "stopvisor,cpus-v1");
  tree.cells("reg", {kIoSpace, device.port_base, 4 * machine.cpus, kIoSpace, device.signature_port, 8});
  write_interrupt(tree, machine, device.gsi);
}

void write_keyboard(TreeWriter& tree, const MachineDescription& machine,
                    const MachineDescription::Keyboard& keyboard) {
  const auto node = tree.node(isa_unit("keyboard", keyboard.data_port));
  tree.text("compatible", "pnpPNP,303");
  tree.cells("reg", {kIoSpace, keyboard.data_port, 1, kIoSpace, keyboard.command_port, 1});
  write_interrupt(tree, machine, keyboard.gsi);
}

void write_reset(TreeWriter& tree, const MachineDescription::Reset& reset) {
  const auto node = tree.node(isa_unit("reset", reset.port));
  tree.text("compatible", "stopvisor,reset-port-v1");
  tree.cells("reg", {kIoSpace, reset.port, 1});
  tree.cells("value", {reset.value});
  tree.cells("mask", {reset.mask});
}

void write_isa(TreeWriter& tree, const MachineDescription& machine) {
  const auto node = tree.node("isa");
  tree.text("compatible", "isa");
  tree.cells("#address-cells", {2});
  tree.cells("#size-cells", {1});
  if (machine.interrupt_controllers)
    write_pics(tree);
  if (machine.pit)
    write_pit(tree, machine);
  if (machine.serial)
    write_serial(tree, machine, *machine.serial);
  if (machine.power)
    write_power(tree, machine, *machine.power);
  if (machine.cpu_device)
    write_cpu_device(tree, machine, *machine.cpu_device);
  if (machine.keyboard)
    write_keyboard(tree, machine, *machine.keyboard);
  for (const MachineDescription::Reset& reset : machine.resets)
    write_reset(tree, reset);
}

void write_doorbell(TreeWriter& tree, const MachineDescription::Doorbell& doorbell) {
  const auto node = tree.node(unit("doorbell", doorbell.mmio.value));
  tree.text("compatible", "stopvisor,doorbell-v1");
  tree.range("reg", doorbell.mmio.value, doorbell.mmio_bytes);
  tree.cells("stopvisor,ports", {doorbell.port_base, doorbell.port_bytes});
  tree.cells("stopvisor,signature-port", {doorbell.signature_port});
}

void write_virtio(TreeWriter& tree, const MachineDescription& machine, const MachineDescription::Virtio& device) {
  const auto node = tree.node(unit("virtio", device.mmio.value));
  tree.text("compatible", device.compatible + std::string(1, '\0') + "virtio,mmio"); // a list
  tree.range("reg", device.mmio.value, device.mmio_bytes);
  write_interrupt(tree, machine, device.gsi);
  for (const machine::Property& property : device.properties)
    property.text ? tree.text(property.name.c_str(), *property.text) : tree.flag(property.name.c_str());
}

void write_root(TreeWriter& tree, const MachineDescription& machine) {
  const auto node = tree.node("");
  tree.cells("#address-cells", {2});
  tree.cells("#size-cells", {2});
  tree.text("compatible", kMachineCompatible);
  tree.text("model", "Stopvisor virtual machine");
  tree.text(kNameProperty, machine.name);
  if (!machine.memory_backing.empty())
    tree.text(kBackingProperty, machine.memory_backing);
  if (machine.interrupt_controllers)
    tree.cells("interrupt-parent", {kIoApicPhandle});
  write_chosen(tree, machine);
  write_cpus(tree, machine);
  write_memory(tree, machine);
  if (machine.interrupt_controllers)
    write_apics(tree);
  write_isa(tree, machine);
  if (machine.doorbell)
    write_doorbell(tree, *machine.doorbell);
  for (const MachineDescription::Virtio& device : machine.virtio)
    write_virtio(tree, machine, device);
}

// It would end the text for whoever reads the tree.
bool has_nul(const MachineDescription& machine) {
  const auto within = [](const std::string& text) { return text.find('\0') != std::string::npos; };
  return within(machine.name) || within(machine.bootargs) || within(machine.kernel) ||
         within(machine.initrd_path) || std::ranges::any_of(machine.virtio, [&](const machine::Virtio& device) {
           return std::ranges::any_of(device.properties, [&](const machine::Property& property) {
             return property.text && within(*property.text);
           });
         });
}

std::unexpected<Error> refuse(std::string reason, Status status) {
  return std::unexpected(Error{"describe machine", "", std::move(reason), status});
}

} // namespace

std::expected<std::vector<std::byte>, Error> describe_machine(const MachineDescription& machine) {
  if (machine.memory.empty())
    return refuse("no memory", Status::kUsage);
  if (machine.cpus == 0)
    return refuse("no vCPU", Status::kUsage);
  if (has_nul(machine))
    return refuse("a NUL in a text", Status::kUsage);
  // libfdt writes into a buffer of fixed size: try again with a larger one.
  for (size_t size = kFirstTreeBytes; size <= kMaxTreeBytes; size *= 2) {
    TreeWriter tree(size);
    write_root(tree, machine);
    auto finished = tree.finish();
    if (finished)
      return *std::move(finished);
    if (finished.error() != TreeWriter::kNoSpace)
      return refuse("libfdt: " + TreeWriter::text_of(finished.error()), Status::kFailed);
  }
  return refuse("larger than " + std::to_string(kMaxTreeBytes) + " bytes", Status::kFailed);
}

} // namespace stopvisor::vmm
