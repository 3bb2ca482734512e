// SPDX-License-Identifier: Apache-2.0
// migrate: moves a running guest to another VMM, and says what an operator decides where that is in doubt.
#include <array>
#include <memory>

#include <nlohmann/json.hpp>

#include "tools/client/client.h"
#include "tools/migrate/address.h"
#include "tools/stopvisor/documents.h"
#include "tools/stopvisor/job_watch.h"
#include "tools/stopvisor/output.h"
#include "tools/stopvisor/verb.h"
#include "vmm/units.h"

namespace stopvisor::tools {
namespace {

using Json = nlohmann::ordered_json;
using vmm::Error;
using vmm::Status;

class MigrateVerb final : public Verb {
public:
  const char* name() const noexcept override { return "migrate"; }
  const char* summary() const noexcept override { return "Move a running guest to another VMM"; }
  const char* details() const noexcept override {
    return "URI says where 'stopvisor run --incoming' waits for it: unix:PATH, tcp://HOST:PORT, exec:COMMAND "
           "(whose\n"
           "stdin and stdout are the link) or fd:N (of the VM's process). Memory is copied while the guest runs; "
           "then\n"
           "it is held until it runs there, for about --max-downtime at most, and its process here ends. A guest "
           "that\n"
           "writes faster than the link carries is slowed meanwhile. Ctrl-C, and everything that goes wrong before "
           "the\n"
           "hand-over, leave it here as it was. Plain TCP to another host needs --insecure: use exec:ssh.\n\n"
           "A link that breaks in the hand-over itself leaves it in doubt who has the guest: it is held here, and "
           "the\n"
           "destination is asked again each second. What one who knows better can say, without a URI but for the "
           "two\n"
           "that ask:\n"
           "  --run-here   the destination has ended, and the guest never ran there: it goes on here\n"
           "  --drop       it runs there: end it here\n"
           "  --ask        ask again, and have it run there; with a URI: at this place\n"
           "  --take-back  ask again, and have it run here unless it runs there already\n\n"
           "Examples:\n"
           "  stopvisor run --name vm2 --incoming unix:/run/vm2.in --detach; stopvisor migrate vm1 "
           "unix:/run/vm2.in\n"
           "  stopvisor migrate vm1 'exec:ssh host2 stopvisor run --incoming stdio:'\n"
           "  stopvisor migrate vm1 tcp://[::1]:4444 --max-downtime 10ms --streams 2 --timeout 60s";
  }
  void declare(Arguments& arguments) override {
    arguments.positional("VM", vm_, "Name of the VM");
    arguments.rest("URI", uri_, 0, "Where it goes");
    arguments.option("--max-downtime", downtime_, "DURATION",
                     "Copy, and slow the guest, until it is held no longer than this (default 50ms)");
    arguments.option("--bandwidth", bandwidth_, "RATE",
                     "Send no more than this a second, as 100M (default: no limit)");
    arguments.option("--streams", streams_, "N", "Links to send over at once (default 1, 16 at most)");
    arguments.option("--compress", compress_, "METHOD", "Compress pages: zstd");
    arguments.option(
        "--timeout", timeout_, "DURATION",
        "Give up, with status 4, where the guest cannot be handed over within this time (default: never)");
    arguments.flag("--insecure", insecure_, "Also over plain TCP to another host");
    arguments.flag("--run-here", run_here_, "In doubt: the guest goes on here");
    arguments.flag("--drop", drop_, "In doubt: the guest runs there");
    arguments.flag("--ask", ask_, "In doubt: ask the destination again, to run it");
    arguments.flag("--take-back", take_back_, "In doubt: ask the destination again, not to run it");
  }
  std::expected<int, Error> run(bool json) override {
    const std::array<std::pair<const char*, bool>, 4> words{
        {{"run-here", run_here_}, {"drop", drop_}, {"ask", ask_}, {"take-back", take_back_}}};
    const char* decision = nullptr;
    for (const auto& [word, given] : words) {
      if (given && decision != nullptr)
        return std::unexpected(usage(std::string("--") + word, "one decision at a time"));
      if (given)
        decision = word;
    }
    if (uri_.size() > 1)
      return std::unexpected(usage(uri_[1], "one place to go to at a time"));
    return decision != nullptr ? decide(decision, json) : move(json);
  }

private:
  Error usage(std::string object, std::string reason) const {
    return {name(), std::move(object), std::move(reason), Status::kUsage};
  }

  std::expected<int, Error> move(bool json) {
    if (uri_.empty())
      return std::unexpected(usage("", "needs a URI: where the guest is to go"));
    const auto body = order();
    if (!body)
      return std::unexpected(body.error());
    auto client = Client::connect(name(), vm_);
    if (!client)
      return std::unexpected(client.error());
    const auto watch = [&](const std::string& phase) {
      if (phase == "in doubt")
        print_note("it is in doubt whether " + uri_.front() +
                   " runs the guest; it is held here, and asked for again "
                   "each second. 'stopvisor migrate --help' says what can be done");
    };
    const auto result = run_job(*client, name(), "/v1/migrate", body->dump(), watch);
    if (!result)
      return std::unexpected(result.error());
    if (json) {
      print_vm_document(vm_, *result);
      return 0;
    }
    try {
      print_text(text_of(Json::parse(*result)));
    } catch (const Json::exception&) {
      return std::unexpected(strange_answer(name(), vm_));
    }
    return 0;
  }

  std::expected<Json, Error> order() const {
    const auto to = migrate::parse_address_here(name(), uri_.front(), migrate::Side::kSource);
    if (!to)
      return std::unexpected(to.error());
    Json body = {{"uri", to->text}, {"insecure", insecure_}};
    if (downtime_) {
      const auto downtime = vmm::parse_duration("migrate: --max-downtime", *downtime_);
      if (!downtime)
        return std::unexpected(downtime.error());
      body["max_downtime_us"] = std::chrono::duration_cast<std::chrono::microseconds>(*downtime).count();
    }
    if (timeout_) {
      const auto timeout = vmm::parse_duration("migrate: --timeout", *timeout_);
      if (!timeout)
        return std::unexpected(timeout.error());
      body["limit_ms"] = std::chrono::duration_cast<std::chrono::milliseconds>(*timeout).count();
    }
    if (bandwidth_) {
      const auto rate = vmm::parse_size("migrate: --bandwidth", *bandwidth_);
      if (!rate)
        return std::unexpected(rate.error());
      body["bytes_per_second"] = *rate;
    }
    if (streams_) {
      const auto streams = vmm::parse_size("migrate: --streams", *streams_);
      if (!streams)
        return std::unexpected(streams.error());
      body["streams"] = *streams;
    }
    if (compress_ && *compress_ != "zstd")
      return std::unexpected(usage("--compress", "must be zstd"));
    body["compress"] = compress_.has_value();
    return body;
  }

  // CONTEXT: throws where the answer is not that of our own server.
  std::string text_of(const Json& done) const {
    const auto us = [&](const char* field) {
      return human_duration(std::chrono::microseconds(done.at(field).get<int64_t>()));
    };
    std::string text = vm_ + ": runs at " + done.at("to").get<std::string>() + "; it was held for " +
                       us("downtime_us") + ", all took " + us("total_us") + ", " + done.at("rounds_made").dump() +
                       " rounds, " + human_size(done.at("bytes").get<uint64_t>()) + " sent";
    if (done.at("slowing_stops").get<uint64_t>() != 0)
      text += "; it was slowed by " + done.at("slowing_stops").dump() + " stops, " + us("slowed_us") + " together";
    return text + "\n";
  }

  std::expected<int, Error> decide(const char* decision, bool json) {
    for (const auto& [option, given] :
         std::array<std::pair<const char*, bool>, 6>{{{"--max-downtime", downtime_.has_value()},
                                                      {"--bandwidth", bandwidth_.has_value()},
                                                      {"--streams", streams_.has_value()},
                                                      {"--compress", compress_.has_value()},
                                                      {"--timeout", timeout_.has_value()},
                                                      {"--insecure", insecure_}}})
      if (given)
        return std::unexpected(usage(option, std::string("does not go with --") + decision));
    if (!uri_.empty() && !ask_ && !take_back_)
      return std::unexpected(usage(uri_.front(), std::string("no place is needed with --") + decision));
    Json body = {{"decision", decision}};
    if (!uri_.empty()) {
      const auto other = migrate::parse_address_here(name(), uri_.front(), migrate::Side::kSource);
      if (!other)
        return std::unexpected(other.error());
      body["uri"] = other->text;
    }
    auto client = Client::connect(name(), vm_);
    if (!client)
      return std::unexpected(client.error());
    const auto answer = client->request("POST", "/v1/migration", body.dump());
    if (!answer)
      return std::unexpected(answer.error());
    if (json)
      print_vm_document(vm_, *answer);
    return 0;
  }

  std::string vm_;
  std::vector<std::string> uri_;
  std::optional<std::string> downtime_;
  std::optional<std::string> bandwidth_;
  std::optional<std::string> streams_;
  std::optional<std::string> compress_;
  std::optional<std::string> timeout_;
  bool insecure_ = false;
  bool run_here_ = false;
  bool drop_ = false;
  bool ask_ = false;
  bool take_back_ = false;
};

} // namespace

std::unique_ptr<Verb> make_migrate() {
  return std::make_unique<MigrateVerb>();
}

} // namespace stopvisor::tools
