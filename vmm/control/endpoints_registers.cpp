// SPDX-License-Identifier: Apache-2.0
// The registers of one vCPU or of all, taken in one stop.
#include <limits>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "vmm/control/endpoints.h"
#include "vmm/control/fields.h"
#include "vmm/control/guest_access.h"
#include "vmm/control/vcpu_activity.h"

namespace stopvisor::vmm {
namespace {

using Json = nlohmann::ordered_json;

Json segment_document(const Segment& segment) {
  return {{"selector", segment.selector}, {"base", segment.base},
          {"limit", segment.limit},       {"type", segment.type},
          {"dpl", segment.dpl},           {"present", segment.present},
          {"long", segment.long_mode},    {"default_32", segment.default_32}};
}

// One vCPU as a stop caught it.
struct Caught {
  Registers registers;
  const char* activity = "";
};

Json registers_document(uint32_t cpu, const Caught& caught, const LinuxKernel* kernel) {
  const Registers& registers = caught.registers;
  const auto place = kernel == nullptr ? std::nullopt : kernel->symbols().place_of(registers.rip);
  Json document = {{"cpu", cpu},
                   {"state", caught.activity},
                   {"rip", registers.rip},
                   {"symbol", place ? Json(place->text()) : Json(nullptr)},
                   {"rflags", registers.rflags}};
  for (size_t i = 0; i < registers.general.size(); ++i)
    document[kGeneralNames[i]] = registers.general[i];
  document.update({{"cr0", registers.cr0},
                   {"cr2", registers.cr2},
                   {"cr3", registers.cr3},
                   {"cr4", registers.cr4},
                   {"cr8", registers.cr8},
                   {"efer", registers.efer},
                   {"apic_base", registers.apic_base},
                   {"cpl", registers.cpl()}});
  document["cs"] = segment_document(registers.cs);
  document["ds"] = segment_document(registers.ds);
  document["es"] = segment_document(registers.es);
  document["fs"] = segment_document(registers.fs);
  document["gs"] = segment_document(registers.gs);
  document["ss"] = segment_document(registers.ss);
  document["tr"] = segment_document(registers.tr);
  document["ldt"] = segment_document(registers.ldt);
  document["gdt"] = {{"base", registers.gdt_base}, {"limit", registers.gdt_limit}};
  document["idt"] = {{"base", registers.idt_base}, {"limit", registers.idt_limit}};
  document["halted"] = registers.halted;
  document["waiting"] = registers.waiting;
  return document;
}

} // namespace

ApiReply serve_registers(ApiContext& context, const ApiRequest& request) {
  Fields fields = Fields::of_query("regs", request);
  const auto cpu = fields.number("cpu", 0, std::numeric_limits<uint32_t>::max());
  const std::string symbols = fields.text("symbols").value_or("");
  const auto deadline = fields.deadline();
  if (auto fine = fields.finish(); !fine)
    return error_reply(fine.error());
  const uint32_t present = context.vm.cpu_count(); // once: vCPUs are added meanwhile, never removed
  if (cpu && *cpu >= present)
    return error_reply({"regs", "",
                        "no vCPU " + std::to_string(*cpu) + ": it has 0 to " + std::to_string(present - 1),
                        Status::kUsage});
  const auto first = uint32_t(cpu.value_or(0));
  std::vector<Caught> caught(cpu ? 1 : present);
  const auto take = [&]() -> std::expected<void, Error> {
    for (uint32_t i = 0; i < caught.size(); ++i) {
      const auto one = context.vm.registers(first + i);
      if (!one)
        return std::unexpected(one.error());
      caught[i] = {*one, vcpu_activity(context.vm.vcpu_status(first + i), *one)};
    }
    return {};
  };
  GuestKnowledge::Kernel kernel;
  std::string no_symbols;
  auto read = context.guest.with_kernel("regs", symbols, deadline, [&](const GuestKnowledge::Kernel& found) {
    kernel = found;
    return take();
  });
  if (!read && read.error().status == Status::kRefused && symbols.empty()) { // of any other guest, without symbols
    no_symbols = read.error().reason;
    read = under_stop(context.vm, "regs", deadline, take);
  }
  if (!read)
    return error_reply(read.error());
  Json list = Json::array();
  for (uint32_t i = 0; i < caught.size(); ++i)
    list.push_back(registers_document(first + i, caught[i], kernel.get()));
  Json document = {{"cpus", std::move(list)}};
  if (kernel == nullptr)
    document["why_no_symbols"] = no_symbols;
  ApiReply reply;
  reply.body = document.dump(-1, ' ', false, Json::error_handler_t::replace);
  return reply;
}

} // namespace stopvisor::vmm
