// SPDX-License-Identifier: Apache-2.0
// A piece of a machine's state, as a snapshot carries it: what it is, whose it is, and its bytes.
//
// The list of sections is what whoever captures a machine and whoever writes it to disk have in common: the one
// knows what the bytes mean, the other keeps them whole. docs/explanation/state.md says what each kind holds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace stopvisor::vmm {

// The numbers are for ever: they are in files. A kind that is no more keeps its number.
enum class StateKind : uint32_t {
  // One of each for every vCPU; `instance` is the vCPU.
  kVcpuCpuid = 0x0100,
  kVcpuSregs = 0x0101,
  kVcpuRegs = 0x0102,
  kVcpuXsave = 0x0103,
  kVcpuXcrs = 0x0104,
  kVcpuDebugRegs = 0x0105,
  kVcpuLapic = 0x0106,
  kVcpuMsrs = 0x0107,
  kVcpuTsc = 0x0108,
  kVcpuEvents = 0x0109,
  kVcpuMpState = 0x010a,
  kVcpuActivity = 0x010b, // online, offline, waiting at its gate

  // One of each for the machine, but for the interrupt controllers; `instance` says which.
  kIrqChip = 0x0200, // KVM_IRQCHIP_*: the two PICs and the IOAPIC
  kPit = 0x0201,
  kClock = 0x0202,

  // Devices; `instance` is the virtio slot for those of virtio, else 0.
  kSerial = 0x0300,
  kKeyboard = 0x0301,
  kCpuDevice = 0x0302,
  kPowerDevice = 0x0303,
  kAcpiPower = 0x0304,
  kPvPanic = 0x0305,
  kDoorbell = 0x0306,
  kResetPort = 0x0307,
  kVirtioTransport = 0x0310,
  kVirtioBackend = 0x0311,

  // Of the machine as a whole; `instance` is 0.
  kMachine = 0x0400, // its description, a flattened device tree
  kPatchLedger = 0x0401,
};

struct StateSection {
  uint32_t kind = 0;     // a StateKind, or one that this program does not know
  uint32_t version = 0;  // of the kind's payload, from 1
  uint32_t instance = 0; // which of several
  std::vector<std::byte> payload;

  friend bool operator==(const StateSection&, const StateSection&) = default;
};

} // namespace stopvisor::vmm
