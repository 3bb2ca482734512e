// SPDX-License-Identifier: Apache-2.0
// Names from Linux: arch/x86/include/asm/current.h, kernel/time/timekeeping.c, kernel/panic.c, kernel/crash_core.c,
// arch/x86/kernel/setup_percpu.c, arch/x86/kernel/head_64.S. Those of 6.1 first, then what they became.
#include "vmm/linux/kernel_layout.h"

#include "vmm/linux/btf.h"

namespace stopvisor::vmm {
namespace {

constexpr uint64_t kIntBytes = 4;
constexpr uint64_t kLongBytes = 8;
constexpr uint64_t kLongestName = 64; // TASK_COMM_LEN is 16

// The offset of a member, where its size is as expected.
std::optional<uint64_t> offset_of(const Btf& types, std::string_view structure, std::string_view name,
                                  uint64_t bytes) {
  const auto member = types.member(structure, name);
  if (!member || member->size_bytes != bytes)
    return std::nullopt;
  return member->offset;
}

std::optional<uint64_t> plus(std::optional<uint64_t> base, std::optional<uint64_t> offset) {
  if (!base || !offset)
    return std::nullopt;
  return *base + *offset;
}

std::optional<KernelLayout::Task> find_task(const Btf& types) {
  const auto thread_id = offset_of(types, "task_struct", "pid", kIntBytes);
  const auto process_id = offset_of(types, "task_struct", "tgid", kIntBytes);
  const auto name = types.member("task_struct", "comm");
  const uint64_t name_bytes = name ? name->size_bytes.value_or(0) : 0;
  if (!thread_id || !process_id || !name || name_bytes == 0 || name_bytes > kLongestName)
    return std::nullopt;
  return KernelLayout::Task{*thread_id, *process_id, name->offset, name_bytes};
}

std::optional<KernelLayout::Processes> find_processes(const Btf& types, const SymbolTable& symbols) {
  const auto first = symbols.address_of("init_task");
  const auto next = offset_of(types, "task_struct", "tasks", 2 * kLongBytes);
  const auto space = offset_of(types, "task_struct", "mm", kLongBytes);
  const auto table = offset_of(types, "mm_struct", "pgd", kLongBytes);
  if (!first || !next || !space || !table)
    return std::nullopt;
  return KernelLayout::Processes{*first, *next, *space, *table};
}

std::optional<uint64_t> find_seconds(const Btf& types, const SymbolTable& symbols) {
  const auto seconds = offset_of(types, "timekeeper", "ktime_sec", kLongBytes);
  if (const auto shadow = plus(symbols.address_of("shadow_timekeeper"), seconds)) // up to 6.12
    return shadow;
  const auto keeper = types.member("tk_data", "timekeeper");
  const auto inside = plus(seconds, keeper ? std::optional(keeper->offset) : std::nullopt);
  if (const auto core = plus(symbols.address_of("tk_core"), inside)) // 6.13 on
    return core;
  return plus(symbols.address_of("timekeeper_data"), inside); // 6.17 on: the first of several
}

void find_offsets(const Btf& types, const SymbolTable& symbols, KernelLayout& layout) {
  layout.task = find_task(types);
  layout.processes = find_processes(types, symbols);
  layout.seconds = find_seconds(types, symbols);
  if (const auto hot =
          plus(symbols.address_of("pcpu_hot"), offset_of(types, "pcpu_hot", "current_task", kLongBytes)))
    layout.current_task = hot; // 6.2 to 6.14
  if (const auto bytes = types.size_of_variable("x86_cpu_to_apicid"); bytes == 2 || bytes == 4) {
    layout.apic_id = symbols.address_of("x86_cpu_to_apicid");
    layout.apic_id_bytes = *bytes;
  }
}

} // namespace

KernelLayout find_layout(const KernelImage& image, const SymbolTable& symbols) {
  KernelLayout layout;
  layout.current_task = symbols.address_of("current_task");
  layout.cpu_offsets = symbols.address_of("__per_cpu_offset");
  layout.cpu_count = symbols.address_of("nr_cpu_ids");
  layout.panic_cpu = symbols.address_of("panic_cpu");
  layout.vmcoreinfo = symbols.address_of("vmcoreinfo_data");
  layout.top_table = symbols.address_of("init_top_pgt");
  const auto start = symbols.address_of("__start_BTF");
  const auto stop = symbols.address_of("__stop_BTF");
  const auto bytes = start && stop ? image.range(*start, *stop) : std::span<const std::byte>();
  if (bytes.empty()) {
    layout.types_problem = "the kernel carries no type information (BTF)";
    return layout;
  }
  const auto types = Btf::read(bytes);
  if (types)
    find_offsets(*types, symbols, layout);
  else
    layout.types_problem = "the kernel's type information (BTF) is malformed: " + types.error();
  return layout;
}

} // namespace stopvisor::vmm
