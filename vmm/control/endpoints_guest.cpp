// SPDX-License-Identifier: Apache-2.0
// What the guest's Linux kernel says of itself.
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "vmm/control/endpoints.h"
#include "vmm/control/fields.h"
#include "vmm/control/vcpu_activity.h"
#include "vmm/linux/guest_facts.h"

namespace stopvisor::vmm {
namespace {

using Json = nlohmann::ordered_json;

// All of one moment.
struct Seen {
  GuestFacts facts;
  std::vector<Registers> registers;
  std::vector<const char*> activity;
  std::vector<Json> places; // of RIP
};

// What of the kernel's identity and place was found twice, from independent sources that agree; and what disagrees.
Json kernel_document(const LinuxKernel& kernel, const GuestFacts& facts, const std::string& file) {
  const KernelIdentity& identity = kernel.identity();
  const std::string build_id = hex_of(identity.build_id);
  Json verified = Json::array({"linux_banner"}); // or it would not have been found
  Json contradicted = Json::array();
  const auto check = [&](const char* what, bool agrees) { (agrees ? verified : contradicted).push_back(what); };
  if (!file.empty())
    verified.push_back("symbol file");
  if (facts.vmcoreinfo && facts.vmcoreinfo->slide)
    check("vmcoreinfo slide", *facts.vmcoreinfo->slide == kernel.slide());
  if (facts.vmcoreinfo && !facts.vmcoreinfo->build_id.empty() && !build_id.empty())
    check("vmcoreinfo build ID", facts.vmcoreinfo->build_id == build_id);
  if (facts.vmcoreinfo && !facts.vmcoreinfo->release.empty())
    check("vmcoreinfo release", facts.vmcoreinfo->release == identity.release);
  return {{"release", identity.release},
          {"banner", identity.banner},
          {"build_id", build_id.empty() ? Json(nullptr) : Json(build_id)},
          {"text", kernel.text()},
          {"slide", kernel.slide()},
          {"symbols", kernel.symbols().size()},
          {"symbols_from", file.empty() ? "kallsyms" : file},
          {"verified", std::move(verified)},
          {"contradicted", std::move(contradicted)}};
}

Json task_document(const GuestVcpu& vcpu) {
  if (!vcpu.task)
    return nullptr;
  return {{"pid", vcpu.task->process_id}, {"tid", vcpu.task->thread_id}, {"comm", vcpu.task->name}};
}

Json vcpus_document(const Seen& seen) {
  Json list = Json::array();
  for (uint32_t cpu = 0; cpu < seen.registers.size(); ++cpu) {
    const GuestVcpu& vcpu = seen.facts.vcpus[cpu];
    Json entry = {{"cpu", cpu},
                  {"state", seen.activity[cpu]},
                  {"linux_cpu", vcpu.linux_cpu ? Json(*vcpu.linux_cpu) : Json(nullptr)},
                  {"cpl", seen.registers[cpu].cpl()},
                  {"rip", seen.registers[cpu].rip},
                  {"symbol", seen.places[cpu]},
                  {"cr3", seen.registers[cpu].cr3},
                  {"task", task_document(vcpu)}};
    if (!vcpu.task)
      entry["why_no_task"] = vcpu.task.error();
    list.push_back(std::move(entry));
  }
  return list;
}

Json panic_document(std::optional<int32_t> cpu) {
  if (!cpu)
    return nullptr;
  return {{"panicked", *cpu != -1}, {"cpu", *cpu == -1 ? Json(nullptr) : Json(*cpu)}};
}

// CONTEXT: under a stop.
std::expected<Seen, Error> look(const Vm& vm, const LinuxKernel& kernel) {
  Seen seen;
  auto registers = all_registers(vm);
  if (!registers)
    return std::unexpected(registers.error());
  seen.registers = *std::move(registers);
  for (uint32_t cpu = 0; cpu < seen.registers.size(); ++cpu)
    seen.activity.push_back(vcpu_activity(vm.vcpu_status(cpu), seen.registers[cpu]));
  seen.facts = read_facts(kernel, vm.memory(), seen.registers);
  return seen;
}

} // namespace

ApiReply serve_guest(ApiContext& context, const ApiRequest& request) {
  Fields fields = Fields::of_query("guest", request);
  const std::string symbols = fields.text("symbols").value_or("");
  const auto deadline = fields.deadline();
  if (auto fine = fields.finish(); !fine)
    return error_reply(fine.error());
  std::shared_ptr<const LinuxKernel> kernel;
  std::expected<Seen, Error> seen;
  const auto use = [&](const std::shared_ptr<const LinuxKernel>& found) -> std::expected<void, Error> {
    kernel = found;
    seen = look(context.vm, *found);
    if (!seen)
      return std::unexpected(seen.error());
    return {};
  };
  const auto done = context.guest.with_kernel("guest", symbols, deadline, use);
  if (!done)
    return error_reply(done.error());
  for (const Registers& registers : seen->registers) {
    const auto place = kernel->symbols().place_of(registers.rip);
    seen->places.push_back(place ? Json(place->text()) : Json(nullptr));
  }
  const GuestFacts& facts = seen->facts;
  ApiReply reply;
  reply.body = Json{{"kernel", kernel_document(*kernel, facts, symbols)},
                    {"uptime_s", facts.uptime_seconds ? Json(*facts.uptime_seconds) : Json(nullptr)},
                    {"panic", panic_document(facts.panic_cpu)},
                    {"vcpus", vcpus_document(*seen)}}
                   .dump(-1, ' ', false, Json::error_handler_t::replace);
  return reply;
}

} // namespace stopvisor::vmm
