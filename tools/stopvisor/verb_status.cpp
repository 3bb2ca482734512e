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

constexpr std::chrono::milliseconds kStopTimeout{1000}; // for the registers

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

// What a vCPU is doing: by the stop that was made for it, else as seen from outside.
std::vector<std::string> vcpu_row(const Json& vcpu) {
  std::vector<std::string> row{vcpu.at("cpu").dump(), vcpu.at("state").get<std::string>(), vcpu.at("tid").dump(),
                               vcpu.at("exits").dump(), vcpu.at("last_exit").get<std::string>()};
  if (!vcpu.contains("rip"))
    return row;
  const bool leaving = row[1] == "leaving";
  row[1] = vcpu.at("doing").get<std::string>() + (leaving ? ", leaving" : "");
  const Json& symbol = vcpu.at("symbol");
  row.insert(row.end(), {vcpu.at("cpl").dump(), fmt::format("{:x}", vcpu.at("cr3").get<uint64_t>()),
                         fmt::format("{:016x}", vcpu.at("rip").get<uint64_t>()),
                         symbol.is_null() ? "" : symbol.get<std::string>()});
  return row;
}

std::string where_text(const Json& status) {
  const auto why = status.find("why_no_registers");
  return why == status.end() ? "" : "  registers  not taken: " + why->get<std::string>() + "\n";
}

// Adds what one short stop finds to the vCPUs of a live status. A VM that cannot be stopped has a status all the
// same. RETURNS: what is wrong with a file of symbols that was asked for.
std::expected<void, Error> add_registers(Json& status, Client& client, std::chrono::milliseconds timeout,
                                         const std::optional<std::string>& symbols) {
  std::string target = "/v1/regs?timeout_ms=" + std::to_string(timeout.count());
  if (symbols)
    target += "&symbols=" + query_value(absolute_path(*symbols));
  const auto answer = client.request("GET", target);
  if (!answer && symbols && answer.error().status != Status::kBusy)
    return std::unexpected(answer.error());
  if (!answer) {
    status["why_no_registers"] = answer.error().reason;
    return {};
  }
  const Json registers = Json::parse(*answer);
  for (Json& vcpu : status.at("vcpus"))
    for (const Json& taken : registers.at("cpus"))
      if (taken.at("cpu") == vcpu.at("cpu")) {
        vcpu["doing"] = taken.at("state");
        for (const char* field : {"cpl", "cr3", "rip", "symbol"})
          vcpu[field] = taken.at(field);
      }
  return {};
}

// Of a disk or a network: what it has done, the rarer things where there were any.
std::string counters_text(const Json& counters) {
  const auto amount = [&](const char* count, const char* bytes) {
    return counters.at(count).dump() + " (" + human_size(counters.at(bytes).get<uint64_t>()) + ")";
  };
  std::string text;
  if (counters.contains("reads"))
    text = "reads " + amount("reads", "bytes_read") + ", writes " + amount("writes", "bytes_written");
  else if (counters.contains("frames_sent"))
    text = "frames received " + amount("frames_received", "bytes_received") + ", sent " +
           amount("frames_sent", "bytes_sent");
  for (const auto& [field, name] : {std::pair{"flushes", "flushes"},
                                    {"discards", "discards"},
                                    {"zeroings", "zeroings"},
                                    {"errors", "ERRORS"},
                                    {"dropped_received", "dropped before the guest"},
                                    {"dropped_sent", "dropped behind the guest"}})
    if (counters.value(field, uint64_t{0}) != 0)
      text += std::string(", ") + name + " " + counters.at(field).dump();
  return text;
}

// What there is to say of virtio devices, beyond their workers.
std::string devices_text(const Json& status) {
  std::string text;
  for (const Json& device : status.at("devices")) {
    std::string says = device.at("driven").get<bool>() ? device.at("requests").dump() + " requests done"
                                                       : "no driver in the guest uses it";
    for (const char* field : {"broken", "trouble"})
      if (!device.at(field).is_null())
        says += std::string(", ") + (field == std::string_view("broken") ? "needs a reset: " : "") +
                device.at(field).get<std::string>();
    text += fmt::format("  {:<10} virtio slot {}, {}\n", device.at("device").get<std::string>(),
                        device.at("slot").dump(), says);
    if (const std::string counted = counters_text(device.at("counters")); !counted.empty())
      text += "             " + counted + "\n";
  }
  return text;
}

// Of a VM whose guest has not arrived.
std::string incoming_text(const Json& status) {
  const Json& incoming = status.at("incoming");
  std::string text = fmt::format("{}: incoming, {}\n  socket     {}\n  process    {}\n  waits at   {}\n",
                                 status.at("name").get<std::string>(), incoming.at("phase").get<std::string>(),
                                 status.at("socket").get<std::string>(), status.at("pid").dump(),
                                 incoming.at("place").get<std::string>());
  if (incoming.at("source").is_string())
    text +=
        fmt::format("  source     {}, {}\n  migration  {}\n  received   {}\n", incoming.at("vm").get<std::string>(),
                    incoming.at("source").get<std::string>(), incoming.at("id").get<std::string>(),
                    human_size(incoming.at("done_bytes").get<uint64_t>()));
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
  if (status.at("panicked").get<bool>())
    text += "  panic      the guest's kernel has panicked since it started last\n";
  text += holders_text(status);
  text += "  last stop  " + last_stop_text(status.at("last_stop")) + "\n";
  text += devices_text(status);
  text += where_text(status);
  std::vector<std::vector<std::string>> rows{
      {"  vCPU", "STATE", "THREAD", "EXITS", "LAST EXIT", "CPL", "CR3", "RIP", "SYMBOL"}};
  for (const Json& vcpu : status.at("vcpus"))
    rows.push_back(vcpu_row(vcpu));
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
    return "RIP, CPL and CR3 are taken in one short stop, and where that does not succeed within a second (or\n"
           "--timeout) the rest is shown without them. --no-stop leaves them out.\n\n"
           "Examples:\n"
           "  stopvisor status vm1\n"
           "  stopvisor status vm1 --dtb | dtc -I dtb -O dts   see the machine as its guest was told of it";
  }
  void declare(Arguments& arguments) override {
    arguments.positional("VM", vm_, "Name of the VM");
    arguments.option("--symbols", symbols_, "FILE",
                     "The kernel's vmlinux or System.map (default: the symbols it carries)");
    arguments.option("--timeout", timeout_, "DURATION", "How long to try for RIP, CPL and CR3 (default 1s)");
    arguments.flag("--no-stop", no_stop_, "Only what can be seen while the guest runs");
    arguments.flag("--dtb", dtb_, "Write the machine description (a flattened device tree) to stdout");
  }
  std::expected<int, Error> run(bool json) override {
    if (dtb_ && json)
      return std::unexpected(Error{"status", "", "--dtb and --json exclude each other", Status::kUsage});
    if (dtb_ && ::isatty(STDOUT_FILENO) == 1)
      return std::unexpected(
          Error{"status", "", "--dtb writes bytes no terminal can show: redirect them", Status::kUsage});
    if ((dtb_ || no_stop_) && (symbols_ || timeout_))
      return std::unexpected(Error{"status", "",
                                   "--symbols and --timeout are for the stop that " +
                                       std::string(dtb_ ? "--dtb" : "--no-stop") + " does not make",
                                   Status::kUsage});
    const auto timeout = parse_timeout("status", timeout_, kStopTimeout);
    if (!timeout)
      return std::unexpected(timeout.error());
    auto client = Client::connect("status", vm_);
    if (!client)
      return std::unexpected(client.error());
    client->set_patience(*timeout + kSearchTime);
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
      const bool incoming = status.contains("incoming");
      if (!no_stop_ && !incoming)
        if (auto added = add_registers(status, *client, *timeout, symbols_); !added)
          return std::unexpected(added.error());
      if (json)
        print_vm_document(vm_, status.dump());
      else
        print_text(incoming ? incoming_text(status) : status_text(status));
    } catch (const Json::exception&) {
      return std::unexpected(strange_answer("status", vm_));
    }
    return 0;
  }

private:
  std::string vm_;
  std::optional<std::string> symbols_;
  std::optional<std::string> timeout_;
  bool dtb_ = false;
  bool no_stop_ = false;
};

} // namespace

std::unique_ptr<Verb> make_ls() {
  return std::make_unique<LsVerb>();
}
std::unique_ptr<Verb> make_status() {
  return std::make_unique<StatusVerb>();
}

} // namespace stopvisor::tools
