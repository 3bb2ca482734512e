// SPDX-License-Identifier: Apache-2.0
#include "vmm/linux/guest_facts.h"

#include <algorithm>
#include <charconv>

namespace stopvisor::vmm {
namespace {

constexpr uint32_t kMostCpus = 1024; // that we look at: more than KVM's vCPUs, few enough for a stop
constexpr size_t kVmcoreInfoBytes = 4096;

class Reader {
public:
  Reader(const LinuxKernel& kernel, const GuestMemory& memory)
      : layout_(kernel.layout()), memory_(kernel.memory_of(memory)) {
    const auto count = value_at<uint32_t>(layout_.cpu_count);
    const uint64_t offsets = layout_.cpu_offsets.value_or(0);
    const uint32_t cpus = layout_.cpu_offsets ? std::min(count.value_or(0), kMostCpus) : 0;
    for (uint32_t cpu = 0; cpu < cpus; ++cpu) {
      const auto offset = memory_.value<uint64_t>(offsets + uint64_t{cpu} * sizeof(uint64_t));
      if (!offset)
        break;
      bases_.push_back(*offset);
      apic_ids_.push_back(read_apic_id(*offset));
    }
  }

  [[nodiscard]] const KernelLayout& layout() const noexcept { return layout_; }
  [[nodiscard]] const KernelMemory& memory() const noexcept { return memory_; }

  template <typename T>
  [[nodiscard]] std::optional<T> value_at(const std::optional<uint64_t>& gva) const {
    return gva ? memory_.value<T>(*gva) : std::nullopt;
  }

  // In the kernel GS points at the CPU's variables; else the local APIC's number, which is the vCPU's, tells.
  [[nodiscard]] std::optional<uint32_t> cpu_of(uint32_t vcpu, const Registers& registers) const {
    if (registers.cpl() == 0)
      if (const auto same = std::ranges::find(bases_, registers.gs.base); same != bases_.end() && *same != 0)
        return static_cast<uint32_t>(same - bases_.begin());
    const auto same = std::ranges::find(apic_ids_, std::optional(vcpu));
    if (same == apic_ids_.end())
      return std::nullopt;
    return static_cast<uint32_t>(same - apic_ids_.begin());
  }

  [[nodiscard]] std::expected<GuestTask, std::string> task_of(uint32_t cpu) const {
    if (!layout_.task || !layout_.current_task)
      return std::unexpected(layout_.types_problem.empty() ? "this kernel keeps its tasks otherwise"
                                                           : layout_.types_problem);
    const auto task = memory_.value<uint64_t>(bases_[cpu] + *layout_.current_task);
    if (!task)
      return std::unexpected("the kernel's current_task cannot be read");
    const auto process = memory_.value<int32_t>(*task + layout_.task->process_id);
    const auto thread = memory_.value<int32_t>(*task + layout_.task->thread_id);
    const auto name = memory_.text(*task + layout_.task->name, layout_.task->name_bytes);
    if (!is_kernel_address(*task) || !process || !thread || !name)
      return std::unexpected("the kernel's current_task leads nowhere");
    return GuestTask{*process, *thread, *name};
  }

private:
  [[nodiscard]] std::optional<uint32_t> read_apic_id(uint64_t base) const {
    const std::optional<uint64_t>& at = layout_.apic_id;
    if (!at)
      return std::nullopt;
    if (layout_.apic_id_bytes == sizeof(uint16_t))
      return memory_.value<uint16_t>(base + *at);
    return memory_.value<uint32_t>(base + *at);
  }

  const KernelLayout& layout_;
  KernelMemory memory_;
  // By the kernel's numbers of its CPUs: where the variables of each begin, and its local APIC's number.
  std::vector<uint64_t> bases_;
  std::vector<std::optional<uint32_t>> apic_ids_;
};

GuestVcpu read_vcpu(const Reader& reader, uint32_t vcpu, const Registers& registers) {
  if (registers.waiting)
    return {std::nullopt, std::unexpected("the guest has not started this vCPU")};
  const auto cpu = reader.cpu_of(vcpu, registers);
  if (!cpu)
    return {std::nullopt, std::unexpected("the kernel does not know this vCPU yet")};
  return {cpu, reader.task_of(*cpu)};
}

std::optional<VmcoreInfo> read_vmcoreinfo(const Reader& reader) {
  const auto at = reader.value_at<uint64_t>(reader.layout().vmcoreinfo);
  std::string text(kVmcoreInfoBytes, '\0');
  if (!at || *at == 0 || !reader.memory().read(*at, std::as_writable_bytes(std::span(text))))
    return std::nullopt;
  return parse_vmcoreinfo(std::string_view(text).substr(0, text.find('\0')));
}

} // namespace

std::optional<VmcoreInfo> parse_vmcoreinfo(std::string_view text) {
  const auto value_of = [&](std::string_view name) -> std::string {
    const std::string begin = std::string(name) + "=";
    for (std::string_view rest = text; !rest.empty();) {
      const std::string_view line = rest.substr(0, rest.find('\n'));
      if (line.starts_with(begin)) {
        std::string value(line.substr(begin.size(), 256));
        std::ranges::transform(value, value.begin(), printable);
        return value;
      }
      rest.remove_prefix(std::min(line.size() + 1, rest.size()));
    }
    return {};
  };
  VmcoreInfo info{std::nullopt, value_of("OSRELEASE"), value_of("BUILD-ID")};
  const std::string offset = value_of("KERNELOFFSET");
  uint64_t slide = 0;
  if (const auto [end, error] = std::from_chars(offset.data(), offset.data() + offset.size(), slide, 16);
      error == std::errc{} && end == offset.data() + offset.size())
    info.slide = slide;
  if (!info.slide && info.release.empty() && info.build_id.empty())
    return std::nullopt;
  return info;
}

GuestFacts read_facts(const LinuxKernel& kernel, const GuestMemory& memory, std::span<const Registers> vcpus) {
  const Reader reader(kernel, memory);
  GuestFacts facts;
  facts.uptime_seconds = reader.value_at<uint64_t>(reader.layout().seconds);
  facts.panic_cpu = reader.value_at<int32_t>(reader.layout().panic_cpu);
  facts.vmcoreinfo = read_vmcoreinfo(reader);
  for (uint32_t vcpu = 0; vcpu < vcpus.size(); ++vcpu)
    facts.vcpus.push_back(read_vcpu(reader, vcpu, vcpus[vcpu]));
  return facts;
}

} // namespace stopvisor::vmm
