// SPDX-License-Identifier: Apache-2.0
// Describes a machine as a flattened device tree (DTB), handed to the guest and shown by `status --dtb`.
//
// The tree is complete: every property needed to build the same machine again stands in it, so that it can
// be read back. Nodes follow the kernel's bindings where there are any (x86: intel,ce4100-*; ns16550a; ISA
// addresses are <1 port size>, unit address "i" and the port); ours are "stopvisor,*":
//
//   /                     compatible "stopvisor,machine-v1", stopvisor,name, interrupt-parent: the I/O APIC
//   /chosen               bootargs, linux,initrd-start and -end, stdout-path
//   /cpus/cpu@N           reg: APIC id; status "disabled" where the guest is to wait until the CPU device wants it
//   /memory@BASE          one per memory slot
//   /interrupt-controller@fec00000 (I/O APIC), @fee00000 (local APIC), /isa/interrupt-controller@i20 (PICs)
//   /isa/timer@i40        PIT
//   /isa/serial@iPORT     ns16550a
//   /isa/power@iPORT      stopvisor,power-v1: power-off, reset, power button (guest/probe_abi.h)
//   /isa/cpu-device@iPORT stopvisor,cpus-v1: vCPUs that come and go; reg is its registers, 4 bytes for each vCPU,
//   and
//                         signature and number of possible vCPUs
//   /isa/reset@iPORT      stopvisor,reset-port-v1: writing `value` under `mask` there resets the machine
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

struct Reset {
  uint16_t port = 0;
  uint8_t value = 0;
  uint8_t mask = 0xff;
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
  using Reset = machine::Reset;
  using Initrd = machine::Initrd;

  std::string name;
  std::vector<Memory> memory;
  uint32_t cpus = 1; // possible ones: APIC ids 0 .. cpus - 1
  stopper::CpuMask enabled_cpus = stopper::CpuMask::first_n(stopper::kMaxCpus);
  bool interrupt_controllers = true; // local APICs, I/O APIC and PICs, where KVM's irqchip has them
  bool pit = false;
  std::optional<Serial> serial;
  std::optional<Doorbell> doorbell;
  std::optional<Power> power;
  std::optional<CpuDevice> cpu_device;
  std::vector<Reset> resets;
  std::string bootargs;
  std::optional<Initrd> initrd;
};

// CONTEXT: any thread, does not block. RETURNS: the tree, dtc decompiles it without a warning; kUsage for
// no memory, no vCPU or a NUL in a text; kFailed where it outgrows 4 MiB.
[[nodiscard]] std::expected<std::vector<std::byte>, Error> describe_machine(const MachineDescription& machine);

} // namespace stopvisor::vmm
