// SPDX-License-Identifier: Apache-2.0
// cpu: a running VM's vCPUs come and go.
#include <array>
#include <charconv>
#include <chrono>

#include <nlohmann/json.hpp>

#include "tools/client/client.h"
#include "tools/stopvisor/documents.h"
#include "tools/stopvisor/output.h"
#include "tools/stopvisor/verb.h"

namespace stopvisor::tools {
namespace {

using Json = nlohmann::ordered_json;
using vmm::Error;
using vmm::Status;

// CONTEXT: throws where the answer is not that of our own server.
std::string change_text(const Json& change) {
  return "vCPU " + change.at("cpu").dump() + ": " + change.at("state").get<std::string>() +
         (change.value("forced", false) ? ", taken by force: the guest had not given it up" : "") + "\n";
}

class CpuVerb final : public Verb {
public:
  const char* name() const noexcept override { return "cpu"; }
  const char* summary() const noexcept override { return "List, add, and take vCPUs of a running VM"; }
  const char* details() const noexcept override {
    return "Without an option, and with --list, the vCPUs are listed. --add brings in new ones, up to --max-cpus "
           "of\n"
           "'run'. --offline asks the guest to give one up and takes it out of the machine; vCPU 0 stays. Where "
           "the\n"
           "guest does not answer the status is 4 and nothing is changed; with --force it is given half of the "
           "time,\n"
           "then the vCPU is taken away all the same, which a guest may not survive. --online brings it back.\n\n"
           "Examples:\n"
           "  stopvisor cpu vm1\n"
           "  stopvisor cpu vm1 --add 2\n"
           "  stopvisor cpu vm1 --offline 3 --timeout 10s\n"
           "  stopvisor cpu vm1 --online 3";
  }
  void declare(Arguments& arguments) override {
    arguments.positional("VM", vm_, "Name of the VM");
    arguments.flag("--list", list_, "List the vCPUs");
    arguments.flag_or_option("--add", add_, count_, "[COUNT]", "Add a vCPU, or so many");
    arguments.option("--offline", offline_, "N", "Take vCPU N out of the machine");
    arguments.option("--online", online_, "N", "Bring vCPU N back");
    arguments.flag("--force", force_, "With --offline: also where the guest does not give it up");
    arguments.option("--timeout", timeout_, "DURATION", "Give up, with status 4, after this long (default 5s)");
  }
  std::expected<int, Error> run(bool json) override {
    const auto timeout = parse_timeout("cpu", timeout_, std::chrono::seconds(5));
    if (!timeout)
      return std::unexpected(timeout.error());
    if (int(list_) + int(add_) + int(offline_.has_value()) + int(online_.has_value()) > 1)
      return std::unexpected(usage("", "--list, --add, --offline and --online exclude each other"));
    if (force_ && !offline_)
      return std::unexpected(usage("", "--force goes with --offline"));
    timeout_ms_ = timeout->count();
    auto client = Client::connect("cpu", vm_);
    if (!client)
      return std::unexpected(client.error());
    client->set_patience(*timeout + std::chrono::seconds(5));
    try {
      if (add_)
        return add(*client, json);
      if (offline_)
        return change(*client, *offline_, "offline", json);
      if (online_)
        return change(*client, *online_, "online", json);
      return list(*client, json);
    } catch (const Json::exception&) {
      return std::unexpected(strange_answer("cpu", vm_));
    }
  }

private:
  static Error usage(std::string_view object, std::string reason) {
    return {"cpu", std::string(object), std::move(reason), Status::kUsage};
  }

  static std::expected<uint32_t, Error> number(const char* option, const std::string& text, const char* what,
                                               uint32_t least = 0) {
    uint32_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || end != text.data() + text.size() || value < least)
      return std::unexpected(Error{std::string("cpu: ") + option, text, what, Status::kUsage});
    return value;
  }

  std::expected<int, Error> list(Client& client, bool json) const {
    const auto answer = client.request("GET", "/v1/cpus");
    if (!answer)
      return std::unexpected(answer.error());
    if (json) {
      print_vm_document(vm_, *answer);
      return 0;
    }
    const Json document = Json::parse(*answer);
    std::vector<std::vector<std::string>> rows{{"vCPU", "STATE", "THREAD"}};
    for (const Json& cpu : document.at("cpus"))
      rows.push_back({cpu.at("cpu").dump(), cpu.at("state").get<std::string>(), cpu.at("tid").dump()});
    print_text(table(rows, std::array<size_t, 2>{0, 2}) + std::to_string(rows.size() - 1) + " of at most " +
               document.at("max_cpus").dump() + "\n");
    return 0;
  }

  // So that what can be known to be too many changes nothing. CONTEXT: throws as change_text() does.
  std::expected<void, Error> check_room(Client& client, uint32_t count) const {
    const auto answer = client.request("GET", "/v1/cpus");
    if (!answer)
      return std::unexpected(answer.error());
    const Json document = Json::parse(*answer);
    const uint32_t max = document.at("max_cpus").get<uint32_t>();
    const size_t present = document.at("cpus").size();
    if (count <= max - present)
      return {};
    return std::unexpected(Error{"cpu", vm_,
                                 "it has " + std::to_string(present) + " of at most " + std::to_string(max) +
                                     " vCPUs (run --max-cpus): no room for " + std::to_string(count) + " more",
                                 Status::kRefused});
  }

  // Each is an addition by itself: where one fails, those before it stay, and are printed.
  std::expected<int, Error> add(Client& client, bool json) const {
    uint32_t count = 1;
    if (count_) {
      const auto wanted = number("--add", *count_, "must be a number of vCPUs, 1 or more", 1);
      if (!wanted)
        return std::unexpected(wanted.error());
      count = *wanted;
    }
    if (count > 1)
      if (auto fine = check_room(client, count); !fine)
        return std::unexpected(fine.error());
    Json added = Json::array();
    for (; count > 0; --count) {
      const auto answer = client.request("POST", "/v1/cpus", Json{{"timeout_ms", timeout_ms_}}.dump());
      if (!answer)
        return std::unexpected(answer.error());
      added.push_back(Json::parse(*answer));
      if (!json)
        print_text(change_text(added.back()));
    }
    if (json)
      print_vm_document(vm_, Json{{"added", std::move(added)}}.dump());
    return 0;
  }

  std::expected<int, Error> change(Client& client, const std::string& text, const char* what, bool json) const {
    const auto cpu = number(offline_ ? "--offline" : "--online", text, "must be the number of a vCPU");
    if (!cpu)
      return std::unexpected(cpu.error());
    Json body = {{"timeout_ms", timeout_ms_}};
    if (force_)
      body["force"] = true;
    const auto answer = client.request("POST", "/v1/cpus/" + std::to_string(*cpu) + "/" + what, body.dump());
    if (!answer)
      return std::unexpected(answer.error());
    if (json)
      print_vm_document(vm_, *answer);
    else
      print_text(change_text(Json::parse(*answer)));
    return 0;
  }

  std::string vm_;
  bool list_ = false;
  bool add_ = false;
  bool force_ = false;
  std::optional<std::string> count_;
  std::optional<std::string> offline_;
  std::optional<std::string> online_;
  std::optional<std::string> timeout_;
  int64_t timeout_ms_ = 0;
};

} // namespace

std::unique_ptr<Verb> make_cpu() {
  return std::make_unique<CpuVerb>();
}

} // namespace stopvisor::tools
