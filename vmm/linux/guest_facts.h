// SPDX-License-Identifier: Apache-2.0
// What a Linux guest says of itself at one moment: how long it is up, whether it has panicked, what runs on each
// vCPU.
#pragma once

#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "vmm/linux/linux_kernel.h"

namespace stopvisor::vmm {

struct GuestTask {
  int32_t process_id = 0; // 0: an idle task, or one of the kernel's first
  int32_t thread_id = 0;
  std::string name; // printable
};

struct GuestVcpu {
  std::optional<uint32_t> linux_cpu; // the kernel's number of this vCPU
  std::expected<GuestTask, std::string> task = std::unexpected(std::string());
};

// What the kernel writes down for those who read its memory after a crash (Linux, Documentation/admin-guide/kdump).
struct VmcoreInfo {
  std::optional<uint64_t> slide; // KERNELOFFSET
  std::string release;           // OSRELEASE
  std::string build_id;          // BUILD-ID, hexadecimal
};

struct GuestFacts {
  std::optional<uint64_t> uptime_seconds; // as the kernel counted last, which is late where all vCPUs sleep
  std::optional<int32_t> panic_cpu;       // nothing: not known; -1: has not panicked; else the CPU that did
  std::optional<VmcoreInfo> vmcoreinfo;   // nothing before the kernel has written it
  std::vector<GuestVcpu> vcpus;
};

// `vcpus`: the registers of each, as many as there are, from the same stop. CONTEXT: under a stop, or the parts do
// not belong together; does not block; some 10 small reads a vCPU, and 4 KiB. What cannot be read is left out.
[[nodiscard]] GuestFacts read_facts(const LinuxKernel& kernel, const GuestMemory& memory,
                                    std::span<const Registers> vcpus);

// For tests. RETURNS: nothing where the text has none of the lines.
[[nodiscard]] std::optional<VmcoreInfo> parse_vmcoreinfo(std::string_view text);

} // namespace stopvisor::vmm
