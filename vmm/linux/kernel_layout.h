// SPDX-License-Identifier: Apache-2.0
// Where a kernel keeps what we read of it: addresses by its symbols, offsets by its type information.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "vmm/linux/kernel_image.h"
#include "vmm/linux/symbol_table.h"

namespace stopvisor::vmm {

// Each thing stands by itself: what is not there is not read.
struct KernelLayout {
  struct Task {
    uint64_t thread_id = 0;  // task_struct.pid
    uint64_t process_id = 0; // task_struct.tgid
    uint64_t name = 0;       // task_struct.comm
    uint64_t name_bytes = 0;
  };

  // The list of processes: from the first one's task_struct on, by links inside each.
  struct Processes {
    uint64_t first = 0; // init_task: an address
    uint64_t next = 0;  // task_struct.tasks, whose first word is the address of the next one's
    uint64_t space = 0; // task_struct.mm: a pointer, null for a kernel thread
    uint64_t table = 0; // mm_struct.pgd: a pointer to the top page table
  };

  std::optional<Task> task;
  std::optional<Processes> processes;
  std::optional<uint64_t> current_task; // per CPU: a pointer
  std::optional<uint64_t> cpu_offsets;  // __per_cpu_offset
  std::optional<uint64_t> cpu_count;    // nr_cpu_ids
  std::optional<uint64_t> apic_id;      // per CPU
  uint64_t apic_id_bytes = 0;           // 2, or 4 since Linux 6.6
  std::optional<uint64_t> seconds;      // CLOCK_MONOTONIC, as counted last
  std::optional<uint64_t> panic_cpu;    // -1: has not panicked
  std::optional<uint64_t> vmcoreinfo;   // a pointer to text
  std::optional<uint64_t> top_table;    // of the kernel's own page tables
  std::string types_problem;            // why there are no offsets; empty where there are
};

// CONTEXT: any thread, does not block. What is missing is left out.
[[nodiscard]] KernelLayout find_layout(const KernelImage& image, const SymbolTable& symbols);

} // namespace stopvisor::vmm
