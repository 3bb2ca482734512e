// SPDX-License-Identifier: Apache-2.0
// guest.
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

std::string joined(const Json& list) {
  std::string text;
  for (const Json& entry : list)
    text += (text.empty() ? "" : ", ") + entry.get<std::string>();
  return text;
}

std::string slide_text(const Json& kernel) {
  std::string text =
      fmt::format("{:#x}, text at {:#x}", kernel.at("slide").get<uint64_t>(), kernel.at("text").get<uint64_t>());
  text += "\n  verified   by " + joined(kernel.at("verified"));
  if (!kernel.at("contradicted").empty())
    text += "\n  BUT        the guest says otherwise in: " + joined(kernel.at("contradicted"));
  return text;
}

// Whole seconds: the kernel's own count has no more.
std::string uptime_text(uint32_t seconds) {
  return seconds < 60 ? std::to_string(seconds) + " s" : human_duration(std::chrono::seconds(seconds));
}

std::string panic_text(const Json& panic) {
  if (panic.is_null())
    return "not known";
  return panic.at("panicked").get<bool>() ? "PANICKED on CPU " + panic.at("cpu").dump() : "no";
}

std::vector<std::string> vcpu_row(const Json& vcpu) {
  const Json& symbol = vcpu.at("symbol");
  const Json& task = vcpu.at("task");
  const auto or_dash = [](const Json& value) { return value.is_null() ? std::string("-") : value.dump(); };
  const auto state = vcpu.at("state").get<std::string>();
  const bool runs = state != "waiting" && state != "offline";
  std::string where = "-";
  std::string mode = "-";
  if (runs) {
    where = symbol.is_null() ? fmt::format("{:#x}", vcpu.at("rip").get<uint64_t>()) : symbol.get<std::string>();
    mode = vcpu.at("cpl") == 3 ? "user" : "kernel";
  }
  return {vcpu.at("cpu").dump(),
          or_dash(vcpu.at("linux_cpu")),
          state,
          mode,
          task.is_null() ? "-" : task.at("pid").dump(),
          task.is_null() ? "-" : task.at("tid").dump(),
          task.is_null() ? "(" + vcpu.at("why_no_task").get<std::string>() + ")"
                         : task.at("comm").get<std::string>(),
          where};
}

// CONTEXT: throws where the answer is not that of our own server.
std::string guest_text(const std::string& vm, const Json& guest) {
  const Json& kernel = guest.at("kernel");
  const Json& build_id = kernel.at("build_id");
  const Json& uptime = guest.at("uptime_s");
  std::string text = fmt::format(
      "{}: Linux {}\n  banner     {}\n  build ID   {}\n  slide      {}\n  symbols    {} from {}\n  uptime     {}\n"
      "  panicked   {}\n",
      vm, kernel.at("release").get<std::string>(), kernel.at("banner").get<std::string>(),
      build_id.is_null() ? "none" : build_id.get<std::string>(), slide_text(kernel), kernel.at("symbols").dump(),
      kernel.at("symbols_from").get<std::string>(),
      uptime.is_null() ? "not known" : uptime_text(uptime.get<uint32_t>()), panic_text(guest.at("panic")));
  std::vector<std::vector<std::string>> rows{{"  vCPU", "CPU", "STATE", "IN", "PID", "TID", "COMM", "AT"}};
  for (const Json& vcpu : guest.at("vcpus"))
    rows.push_back(vcpu_row(vcpu));
  return text + table(rows, std::array<size_t, 4>{0, 1, 4, 5});
}

class GuestVerb final : public Verb {
public:
  const char* name() const noexcept override { return "guest"; }
  const char* summary() const noexcept override { return "Show what a Linux guest is and runs"; }
  const char* details() const noexcept override {
    return "Finds the guest's Linux kernel in its memory: version, build ID, where KASLR has put it, how long it "
           "is\n"
           "up, whether it has panicked, and the task on each vCPU. All of it is the guest's own word: a hostile "
           "guest\n"
           "may lie. Where no Linux is found nothing is shown and the exit status is 3.\n\n"
           "Examples:\n"
           "  stopvisor guest vm1\n"
           "  stopvisor guest vm1 --symbols /usr/lib/debug/boot/vmlinux-6.1.0-56-amd64 --json";
  }
  void declare(Arguments& arguments) override {
    arguments.positional("VM", vm_, "Name of the VM");
    arguments.option("--symbols", symbols_, "FILE",
                     "The kernel's vmlinux or System.map (default: the symbols it carries)");
    arguments.option("--timeout", timeout_, "DURATION", "Give up, with status 4, after this long (default 5s)");
  }
  std::expected<int, Error> run(bool json) override {
    const auto timeout = parse_timeout("guest", timeout_, std::chrono::seconds(5));
    if (!timeout)
      return std::unexpected(timeout.error());
    auto client = Client::connect("guest", vm_);
    if (!client)
      return std::unexpected(client.error());
    client->set_patience(*timeout + kSearchTime);
    std::string target = "/v1/guest?timeout_ms=" + std::to_string(timeout->count());
    if (symbols_)
      target += "&symbols=" + query_value(absolute_path(*symbols_));
    const auto answer = client->request("GET", target);
    if (!answer)
      return std::unexpected(answer.error());
    if (json) {
      print_vm_document(vm_, *answer);
      return 0;
    }
    try {
      print_text(guest_text(vm_, Json::parse(*answer)));
    } catch (const Json::exception&) {
      return std::unexpected(strange_answer("guest", vm_));
    }
    return 0;
  }

private:
  std::string vm_;
  std::optional<std::string> symbols_;
  std::optional<std::string> timeout_;
};

} // namespace

std::unique_ptr<Verb> make_guest() {
  return std::make_unique<GuestVerb>();
}

} // namespace stopvisor::tools
