// SPDX-License-Identifier: Apache-2.0
#include "vmm/linux/process_table.h"

namespace stopvisor::vmm {
namespace {

// Where the list of processes stopped making sense.
std::unexpected<std::string> leads_nowhere() {
  return std::unexpected<std::string>("the kernel's list of processes leads nowhere");
}

// A table takes a page; with page table isolation it is the first of two, which has the process' memory as well.
std::expected<uint64_t, std::string> table_of(const KernelLayout::Processes& layout, const KernelMemory& memory,
                                              uint64_t task, const std::string& name) {
  const auto space = memory.value<uint64_t>(task + layout.space);
  if (!space)
    return leads_nowhere();
  if (*space == 0)
    return std::unexpected(name + " has no address space: it is a kernel thread, or it ends");
  const auto table = is_kernel_address(*space) ? memory.value<uint64_t>(*space + layout.table) : std::nullopt;
  const auto at = table && is_kernel_address(*table) ? memory.physical(*table) : std::nullopt;
  if (!at || at->value % kPageBytes != 0)
    return std::unexpected(name + " has no page tables that can be found");
  return at->value;
}

} // namespace

std::expected<uint64_t, std::string> find_process_table(const LinuxKernel& kernel, const GuestMemory& memory,
                                                        uint32_t pid) {
  const KernelLayout& layout = kernel.layout();
  if (!layout.task || !layout.processes)
    return std::unexpected("no process can be found: " + (layout.types_problem.empty()
                                                              ? "this kernel keeps its processes otherwise"
                                                              : layout.types_problem));
  const KernelLayout::Processes& processes = *layout.processes;
  const KernelMemory reader = kernel.memory_of(memory);
  const uint64_t head = processes.first + processes.next; // the list goes from link to link
  auto link = reader.value<uint64_t>(head);
  for (uint32_t seen = 0; seen < kMostProcesses; ++seen) {
    if (!link || !is_kernel_address(*link))
      return leads_nowhere();
    if (*link == head)
      return std::unexpected("there is no process " + std::to_string(pid));
    const uint64_t task = *link - processes.next;
    const auto number = reader.value<uint32_t>(task + layout.task->process_id);
    if (!number)
      return leads_nowhere();
    if (*number == pid)
      return table_of(processes, reader, task, "process " + std::to_string(pid));
    link = reader.value<uint64_t>(*link);
  }
  return std::unexpected("process " + std::to_string(pid) + " is not among the first " +
                         std::to_string(kMostProcesses) + " of the kernel's list");
}

} // namespace stopvisor::vmm
