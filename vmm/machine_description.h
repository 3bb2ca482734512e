// SPDX-License-Identifier: Apache-2.0
// Describes a machine as a flattened device tree (DTB), handed to the guest and shown by `status --dtb`.
//
// The tree is complete: every property needed to build the same machine again stands in it, so that it can
// be read back. Nodes follow the kernel's bindings where there are any (x86: intel,ce4100-*; ns16550a; ISA
// addresses are <1 port size>, unit address "i" and the port); ours are "stopvisor,*":
//
//   /                     compatible "stopvisor,machine-v1", stopvisor,name, stopvisor,memory-backing,
//                         interrupt-parent: the I/O APIC
//   /chosen               bootargs, linux,initrd-start and -end, stdout-path; stopvisor,kernel and
//   stopvisor,initrd:
//                         paths on the host
//   /cpus/cpu@N           reg: APIC id; status "disabled" where the guest is to wait until the CPU device wants it
//   /memory@BASE          one per memory slot
//   /interrupt-controller@fec00000 (I/O APIC), @fee00000 (local APIC), /isa/interrupt-controller@i20 (PICs)
//   /isa/timer@i40        PIT
//   /isa/serial@iPORT     ns16550a
//   /isa/keyboard@i60     the keyboard controller
//   /isa/power@iPORT      stopvisor,power-v1: power-off, reset, power button (guest/probe_abi.h)
//   /isa/cpu-device@iPORT stopvisor,cpus-v1: vCPUs that come and go; reg is its registers, 4 bytes for each vCPU,
//   and
//                         signature and number of possible vCPUs
//   /isa/reset@iPORT      stopvisor,reset-port-v1: writing `value` under `mask` there resets the machine
//   /virtio@GPA           "stopvisor,block-v1" and the like, then "virtio,mmio"; stopvisor,path and what else the
//   kind
//                         needs (docs/reference/devices.md)
//   /doorbell@GPA         stopvisor,doorbell-v1: reg is its MMIO, stopvisor,ports and stopvisor,signature-port
//                         its I/O ports
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <string>
#include <vector>

#include "stopper/cpu_mask.h"
#include "vmm/address.h"
#include "vmm/error.h"

namespace stopvisor::vmm {

inline constexpr const char* kMachineCompatible = "stopvisor,machine-v1";
inline constexpr const char* kNameProperty = "stopvisor,name";
inline constexpr const char* kBackingProperty = "stopvisor,memory-backing";
inline constexpr const char* kKernelProperty = "stopvisor,kernel";
inline constexpr const char* kInitrdProperty = "stopvisor,initrd";
inline constexpr const char* kIoApicPath = "/interrupt-controller@fec00000";

// The parts, outside of the whole so that std::optional sees them complete.
namespace machine {

struct Memory {
  Gpa base;
  uint64_t size_bytes = 0;
};

struct Serial {
  uint16_t port = 0x3f8;
  uint32_t gsi = 4;
};

struct Doorbell {
  uint16_t signature_port = 0;
  uint16_t port_base = 0;
  uint32_t port_bytes = 0;
  Gpa mmio;
  uint64_t mmio_bytes = 0;
};

struct Power {
  uint16_t port = 0;
  uint32_t port_bytes = 4;
  uint32_t gsi = 0;
};

struct CpuDevice {
  uint16_t signature_port = 0;
  uint16_t port_base = 0;
  uint32_t gsi = 0;
};

struct Keyboard {
  uint16_t data_port = 0;
  uint16_t command_port = 0;
  uint32_t gsi = 0;
};

struct Reset {
  uint16_t port = 0;
  uint8_t value = 0;
  uint8_t mask = 0xff;
};

// Of a virtio device, by name ("stopvisor,path"); without a text it is a flag.
struct Property {
  std::string name;
  std::optional<std::string> text;
  bool operator==(const Property&) const = default;
};

struct Virtio {
  std::string compatible; // what device it is (vmm/virtio/device_table.h), before "virtio,mmio"
  Gpa mmio;
  uint64_t mmio_bytes = 0x1000;
  uint32_t gsi = 0;
  std::vector<Property> properties; // all that is needed to make it again
};

struct Initrd {
  Gpa start;
  uint64_t size_bytes = 0;
};

} // namespace machine

struct MachineDescription {
  using Memory = machine::Memory;
  using Serial = machine::Serial;
  using Doorbell = machine::Doorbell;
  using Power = machine::Power;
  using CpuDevice = machine::CpuDevice;
  using Keyboard = machine::Keyboard;
  using Reset = machine::Reset;
  using Virtio = machine::Virtio;
  using Initrd = machine::Initrd;

  std::string name;
  std::vector<Memory> memory;
  std::string memory_backing; // as users write it; empty: not said
  std::string kernel;         // paths on the host; empty: the built-in guest, none
  std::string initrd_path;
  uint32_t cpus = 1; // possible ones: APIC ids 0 .. cpus - 1
  stopper::CpuMask enabled_cpus = stopper::CpuMask::first_n(stopper::kMaxCpus);
  bool interrupt_controllers = true; // local APICs, I/O APIC and PICs, where KVM's irqchip has them
  bool pit = false;
  std::optional<Serial> serial;
  std::optional<Doorbell> doorbell;
  std::optional<Power> power;
  std::optional<CpuDevice> cpu_device;
  std::optional<Keyboard> keyboard;
  std::vector<Reset> resets;
  std::vector<Virtio> virtio; // in the order of their slots
  std::string bootargs;
  std::optional<Initrd> initrd;
};

// CONTEXT: any thread, does not block. RETURNS: the tree, dtc decompiles it without a warning; kUsage for
// no memory, no vCPU or a NUL in a text; kFailed where it outgrows 4 MiB.
[[nodiscard]] std::expected<std::vector<std::byte>, Error> describe_machine(const MachineDescription& machine);

} // namespace stopvisor::vmm
