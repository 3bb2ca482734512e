// SPDX-License-Identifier: Apache-2.0
// regs.
#include <array>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tools/client/client.h"
#include "tools/stopvisor/documents.h"
#include "tools/stopvisor/output.h"
#include "tools/stopvisor/verb.h"

namespace stopvisor::tools {
namespace {

using Json = nlohmann::json;
using vmm::Error;
using vmm::Status;

constexpr std::array kGeneral{"rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
                              "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
constexpr std::array kSegments{"cs", "ss", "ds", "es", "fs", "gs", "tr", "ldt"};
constexpr size_t kColumns = 4;

uint64_t number(const Json& object, const char* name) {
  return object.at(name).get<uint64_t>();
}

// CONTEXT: throws where the answer is not that of our own server.
std::string registers_text(const Json& cpu) {
  const Json& symbol = cpu.at("symbol");
  std::string text = fmt::format("vCPU {}: {}, CPL {}{}\n", number(cpu, "cpu"), cpu.at("state").get<std::string>(),
                                 number(cpu, "cpl"), symbol.is_null() ? "" : ", at " + symbol.get<std::string>());
  text += fmt::format("  rip    {:016x}  rflags {:016x}\n", number(cpu, "rip"), number(cpu, "rflags"));
  for (size_t i = 0; i < kGeneral.size(); ++i)
    text += fmt::format("{}{:<6} {:016x}{}", i % kColumns == 0 ? "  " : "", kGeneral[i], number(cpu, kGeneral[i]),
                        i % kColumns == kColumns - 1 ? "\n" : "  ");
  text += fmt::format("  cr0    {:016x}  cr2    {:016x}  cr3    {:016x}  cr4    {:016x}\n", number(cpu, "cr0"),
                      number(cpu, "cr2"), number(cpu, "cr3"), number(cpu, "cr4"));
  text += fmt::format("  cr8    {:016x}  efer   {:016x}  apic   {:016x}\n", number(cpu, "cr8"), number(cpu, "efer"),
                      number(cpu, "apic_base"));
  for (const char* name : kSegments) {
    const Json& segment = cpu.at(name);
    text += fmt::format(
        "  {:<6} {:04x}  base {:016x}  limit {:08x}  type {:x}  dpl {}{}{}{}\n", name, number(segment, "selector"),
        number(segment, "base"), number(segment, "limit"), number(segment, "type"), number(segment, "dpl"),
        segment.at("present").get<bool>() ? "" : "  absent", segment.at("long").get<bool>() ? "  64-bit" : "",
        segment.at("default_32").get<bool>() ? "  32-bit" : "");
  }
  for (const char* name : {"gdt", "idt"})
    text += fmt::format("  {:<6}       base {:016x}  limit {:08x}\n", name, number(cpu.at(name), "base"),
                        number(cpu.at(name), "limit"));
  return text;
}

class RegsVerb final : public Verb {
public:
  const char* name() const noexcept override { return "regs"; }
  const char* summary() const noexcept override { return "Show vCPU registers, all taken in one stop"; }
  const char* details() const noexcept override {
    return "The state is what the stop found the vCPU doing: guest (it ran guest code), host (the VMM served it),\n"
           "halted (it is in HLT), waiting (the guest has not started it), or offline. Of a Linux guest the "
           "symbol\n"
           "at RIP is shown as well.\n\n"
           "Examples:\n  stopvisor regs vm1\n  stopvisor regs vm1 --cpu 2 --json";
  }
  void declare(Arguments& arguments) override {
    arguments.positional("VM", vm_, "Name of the VM");
    arguments.option("--cpu", cpu_, "N", "Only this vCPU (default: all)");
    arguments.option("--symbols", symbols_, "FILE",
                     "The kernel's vmlinux or System.map (default: the symbols it carries)");
    arguments.option("--timeout", timeout_, "DURATION", "Give up, with status 4, after this long (default 5s)");
  }
  std::expected<int, Error> run(bool json) override {
    if (cpu_ && (cpu_->empty() || cpu_->size() > 5 || cpu_->find_first_not_of("0123456789") != std::string::npos))
      return std::unexpected(Error{"regs: --cpu", *cpu_, "must be the number of a vCPU", Status::kUsage});
    const auto timeout = parse_timeout("regs", timeout_, std::chrono::seconds(5));
    if (!timeout)
      return std::unexpected(timeout.error());
    auto client = Client::connect("regs", vm_);
    if (!client)
      return std::unexpected(client.error());
    client->set_patience(*timeout + kSearchTime);
    const auto answer = client->request("GET", target(*timeout));
    if (!answer)
      return std::unexpected(answer.error());
    if (json) {
      print_vm_document(vm_, *answer);
      return 0;
    }
    try {
      std::string text;
      const Json document = Json::parse(*answer);
      for (const Json& cpu : document.at("cpus"))
        text += (text.empty() ? "" : "\n") + registers_text(cpu);
      print_text(text);
    } catch (const Json::exception&) {
      return std::unexpected(strange_answer("regs", vm_));
    }
    return 0;
  }

private:
  [[nodiscard]] std::string target(std::chrono::milliseconds timeout) const {
    std::string text = "/v1/regs?timeout_ms=" + std::to_string(timeout.count());
    if (cpu_)
      text += "&cpu=" + *cpu_;
    if (symbols_)
      text += "&symbols=" + query_value(absolute_path(*symbols_));
    return text;
  }

  std::string vm_;
  std::optional<std::string> cpu_;
  std::optional<std::string> symbols_;
  std::optional<std::string> timeout_;
};

} // namespace

std::unique_ptr<Verb> make_regs() {
  return std::make_unique<RegsVerb>();
}

} // namespace stopvisor::tools
