// SPDX-License-Identifier: Apache-2.0
// ls and status.
#include <unistd.h>

#include <algorithm>
#include <array>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tools/client/client.h"
#include "tools/stopvisor/documents.h"
#include "tools/stopvisor/output.h"
#include "tools/stopvisor/verb.h"
#include "vmm/control/socket_place.h"

namespace stopvisor::tools {
namespace {

using Json = nlohmann::ordered_json;
using vmm::Error;
using vmm::Status;

constexpr std::chrono::milliseconds kListPatience{2000}; // for each VM: one that hangs must not hide the others

std::chrono::nanoseconds milliseconds_of(const Json& value) {
  return std::chrono::milliseconds(value.get<int64_t>());
}
std::chrono::nanoseconds nanoseconds_of(const Json& value) {
  return std::chrono::nanoseconds(value.is_null() ? 0 : value.get<int64_t>());
}

// The entry of one VM; one that does not answer is listed with what is known of it.
Json entry_of(const vmm::RunningVm& vm) {
  Json entry = {{"name", vm.name}, {"pid", vm.pid}, {"state", "unreachable"}};
  auto client = Client::connect("ls", vm.name);
  if (!client)
    return entry;
  client->set_patience(kListPatience);
  const auto answer = client->request("GET", "/v1/status");
  const Json status = answer ? Json::parse(*answer, nullptr, false) : Json();
  if (!status.is_object())
    return entry;
  for (const char* field : {"state", "cpus", "memory_bytes", "uptime_ms", "holds"})
    if (const auto found = status.find(field); found != status.end())
      entry[field] = *found;
  return entry;
}

std::vector<std::string> row_of(const Json& entry) {
  const auto text = [&](const char* field, auto show) {
    const auto found = entry.find(field);
    return found == entry.end() ? std::string("-") : std::string(show(*found));
  };
  const auto plain = [](const Json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); };
  return {text("name", plain),
          text("pid", plain),
          text("state", plain),
          text("cpus", plain),
          text("memory_bytes", [](const Json& value) { return human_size(value.get<uint64_t>()); }),
          text("uptime_ms", [](const Json& value) { return human_duration(milliseconds_of(value)); }),
          text("holds", plain)};
}

class LsVerb final : public Verb {
public:
  const char* name() const noexcept override { return "ls"; }
  const char* summary() const noexcept override { return "List the running VMs"; }
  const char* details() const noexcept override {
    return "What dead VMs left in the socket directory is removed.\n\nExamples:\n  stopvisor ls\n  stopvisor ls "
           "--json";
  }
  void declare(Arguments&) override {}
  std::expected<int, Error> run(bool json) override {
    const auto running = vmm::running_vms();
    if (!running)
      return std::unexpected(running.error());
    Json list = Json::array();
    for (const vmm::RunningVm& vm : *running)
      list.push_back(entry_of(vm));
    if (json) {
      print_text(Json{{"vms", std::move(list)}}.dump(2) + "\n");
      return 0;
    }
    if (list.empty()) {
      print_note("no VM is running");
      return 0;
    }
    std::vector<std::vector<std::string>> rows{{"NAME", "PID", "STATE", "CPUS", "MEMORY", "UPTIME", "HOLDS"}};
    try {
      for (const Json& entry : list)
        rows.push_back(row_of(entry));
    } catch (const Json::exception&) {
      return std::unexpected(strange_answer("ls", ""));
    }
    print_text(table(rows, std::array<size_t, 4>{1, 3, 4, 6}));
    return 0;
  }
};

std::string holders_text(const Json& status) {
  std::string text;
  for (const Json& holder : status.at("holders")) {
    text += fmt::format("    {:<8} of pid {}, uid {}, for {}", holder.at("kind").get<std::string>(),
                        holder.at("pid").dump(), holder.at("uid").dump(),
                        human_duration(milliseconds_of(holder.at("held_ms"))));
    if (holder.contains("left_ms"))
      text += ", " + human_duration(milliseconds_of(holder.at("left_ms"))) + " left";
    text += "\n";
  }
  return text;
}

std::string last_stop_text(const Json& stop) {
  if (stop.is_null())
    return "none is over yet";
  std::string text = fmt::format("#{} {}, {} participants", stop.at("sequence").dump(),
                                 stop.at("end").get<std::string>(), stop.at("participants").dump());
  if (!stop.at("all_held_ns").is_null())
    text += ", all held after " + human_duration(nanoseconds_of(stop.at("all_held_ns")));
  if (!stop.at("hold_ns").is_null())
    text += ", held for " + human_duration(nanoseconds_of(stop.at("hold_ns")));
  if (stop.value("lift_refused", false))
    text +=
        "\n             somebody was late, and raising its priority was refused (CAP_SYS_NICE or RLIMIT_RTPRIO)";
  return text;
}

// CONTEXT: throws where the answer is not that of our own server.
std::string status_text(const Json& status) {
  const Json& kernel = status.at("kernel");
  std::string text = fmt::format(
      "{}: {}\n  socket     {}\n  process    {}\n  uptime     {}\n  vCPUs      {} of at most {}\n  memory     {} "
      "({})\n  kernel  "
      "   {}\n  holds   "
      "   {}\n",
      status.at("name").get<std::string>(), status.at("state").get<std::string>(),
      status.at("socket").get<std::string>(), status.at("pid").dump(),
      human_duration(milliseconds_of(status.at("uptime_ms"))), status.at("cpus").dump(),
      status.at("max_cpus").dump(), human_size(status.at("memory_bytes").get<uint64_t>()),
      status.at("memory_backing").get<std::string>(),
      kernel.is_null() ? "the built-in probe guest" : kernel.get<std::string>(), status.at("holds").dump());
  text += holders_text(status);
  text += "  last stop  " + last_stop_text(status.at("last_stop")) + "\n";
  std::vector<std::vector<std::string>> rows{{"  vCPU", "STATE", "THREAD", "EXITS", "LAST EXIT"}};
  for (const Json& vcpu : status.at("vcpus"))
    rows.push_back({vcpu.at("cpu").dump(), vcpu.at("state").get<std::string>(), vcpu.at("tid").dump(),
                    vcpu.at("exits").dump(), vcpu.at("last_exit").get<std::string>()});
  for (const Json& worker : status.at("workers"))
    rows.push_back({"  " + worker.at("worker").get<std::string>(), "worker", worker.at("tid").dump(), "-",
                    worker.at("jobs").dump() + " jobs done"});
  return text + table(rows, std::array<size_t, 3>{0, 2, 3});
}

class StatusVerb final : public Verb {
public:
  const char* name() const noexcept override { return "status"; }
  const char* summary() const noexcept override { return "Show one VM: state, holds, vCPUs, the last stop"; }
  const char* details() const noexcept override {
    return "Examples:\n"
           "  stopvisor status vm1\n"
           "  stopvisor status vm1 --dtb | dtc -I dtb -O dts   see the machine as its guest was told of it";
  }
  void declare(Arguments& arguments) override {
    arguments.positional("VM", vm_, "Name of the VM");
    arguments.flag("--dtb", dtb_, "Write the machine description (a flattened device tree) to stdout");
  }
  std::expected<int, Error> run(bool json) override {
    if (dtb_ && json)
      return std::unexpected(Error{"status", "", "--dtb and --json exclude each other", Status::kUsage});
    if (dtb_ && ::isatty(STDOUT_FILENO) == 1)
      return std::unexpected(
          Error{"status", "", "--dtb writes bytes no terminal can show: redirect them", Status::kUsage});
    auto client = Client::connect("status", vm_);
    if (!client)
      return std::unexpected(client.error());
    const auto answer = client->request("GET", dtb_ ? "/v1/dtb" : "/v1/status");
    if (!answer)
      return std::unexpected(answer.error());
    if (dtb_) {
      print_text(*answer);
      return 0;
    }
    try {
      Json status = Json::parse(*answer);
      status["socket"] = client->socket_path();
      if (json)
        print_vm_document(vm_, status.dump());
      else
        print_text(status_text(status));
    } catch (const Json::exception&) {
      return std::unexpected(strange_answer("status", vm_));
    }
    return 0;
  }

private:
  std::string vm_;
  bool dtb_ = false;
};

} // namespace

std::unique_ptr<Verb> make_ls() {
  return std::make_unique<LsVerb>();
}
std::unique_ptr<Verb> make_status() {
  return std::make_unique<StatusVerb>();
}

} // namespace stopvisor::tools
