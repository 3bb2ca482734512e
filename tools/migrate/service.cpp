// SPDX-License-Identifier: Apache-2.0
#include "tools/migrate/service.h"

#include <algorithm>
#include <array>
#include <limits>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

#include "tools/migrate/page_batch.h"
#include "vmm/control/fields.h"

namespace stopvisor::migrate {
namespace {

using Json = nlohmann::ordered_json;
using vmm::Error;
using vmm::Status;

constexpr const char* kOperation = "migrate";
constexpr uint64_t kLongestDowntimeUs = 60'000'000;
// How long a guest's end here waits for who asked for the migration, and for who watches it: he asks five times a
// second, and longer waits are the host's.
constexpr std::chrono::seconds kToHearNews{2};
constexpr std::chrono::seconds kToHearNewsWatched{15};

int64_t us(std::chrono::nanoseconds time) {
  return std::chrono::duration_cast<std::chrono::microseconds>(time).count();
}

std::expected<SourceOptions, Error> read_order(const vmm::ApiRequest& request) {
  auto fields = vmm::Fields::of_body(kOperation, request.body);
  if (!fields)
    return std::unexpected(fields.error());
  SourceOptions options;
  const auto uri = fields->text("uri");
  fields->require("uri", uri.has_value());
  if (const auto downtime = fields->number("max_downtime_us", 1, kLongestDowntimeUs))
    options.max_downtime = std::chrono::microseconds(*downtime);
  options.bytes_per_second = fields->number("bytes_per_second", 1).value_or(0);
  options.streams = static_cast<uint16_t>(fields->number("streams", 1, kMaxLinks).value_or(1));
  options.compress = fields->flag("compress").value_or(false);
  options.insecure = fields->flag("insecure").value_or(false);
  if (const auto timeout = fields->number("limit_ms", 1, std::numeric_limits<uint32_t>::max()))
    options.timeout = std::chrono::milliseconds(*timeout);
  if (auto fine = fields->finish(); !fine)
    return std::unexpected(fine.error());
  auto address = parse_address(kOperation, uri.value_or(""), Side::kSource);
  if (!address)
    return std::unexpected(address.error());
  options.to = *std::move(address);
  if (options.streams > 1 && options.to.kind != AddressKind::kUnix && options.to.kind != AddressKind::kTcp)
    return std::unexpected(Error{kOperation, "streams",
                                 "several streams need unix: or tcp:, which can be called more than once",
                                 Status::kUsage});
  return options;
}

Json rounds_of(const SourceFigures& figures) {
  Json list = Json::array();
  for (const RoundTold& round : figures.rounds)
    list.push_back(
        {{"round", round.number}, {"pages", round.pages}, {"us", us(round.took)}, {"slowed", round.slowed}});
  return list;
}

Json document_of(const SourceFigures& figures) {
  return {{"downtime_us", us(figures.downtime)},
          {"ready_us", us(figures.until_ready)},
          {"total_us", us(figures.total)},
          {"rounds_made", figures.rounds_made},
          {"bytes", figures.payload_bytes},
          {"pages", figures.pages_looked_at},
          {"sent_pages", figures.pages_sent},
          {"zero_pages", figures.pages_zero},
          {"copied_pages", figures.pages_copies},
          {"unchanged_pages", figures.pages_unchanged},
          {"slowing_stops", figures.throttle_stops},
          {"slowed_us", us(figures.throttled_for)},
          {"link_bytes_per_second", static_cast<uint64_t>(figures.pages_per_second * kPageBytes)},
          {"dirty_bytes_per_second", static_cast<uint64_t>(figures.dirty_per_second * kPageBytes)},
          {"rounds", rounds_of(figures)}};
}

std::string text_of(const Json& document) {
  return document.dump(-1, ' ', false, Json::error_handler_t::replace);
}

} // namespace

Service::Service(vmm::Vm& vm, vmm::Api& api, std::function<void(std::vector<vmm::StateSection>&)> add_state,
                 std::function<void(const std::string&)> tell)
    : vm_(vm), context_(api.context()), add_state_(std::move(add_state)), tell_(std::move(tell)) {
  api.add("POST", "/v1/migrate", [this](const vmm::ApiRequest& request) { return begin(request); });
  api.add("GET", "/v1/migration", [this](const vmm::ApiRequest& request) { return show(request); });
  api.add("POST", "/v1/migration", [this](const vmm::ApiRequest& request) { return decide(request); });
}

Service::~Service() {
  context_.jobs.end_all();
}

std::shared_ptr<Source> Service::current() const {
  const std::lock_guard guard(mutex_);
  return current_;
}

vmm::ApiReply Service::begin(const vmm::ApiRequest& request) {
  auto options = read_order(request);
  if (!options)
    return vmm::error_reply(options.error());
  const auto job =
      context_.jobs.start(kOperation, options->to.text, request.peer,
                          [this, options = *options](vmm::JobHandle& handle) { return migrate(options, handle); });
  if (!job)
    return vmm::error_reply(job.error());
  vmm::ApiReply reply;
  reply.body = Json{{"job", *job}}.dump();
  reply.undo = [this, id = *job] { (void)context_.jobs.cancel(id); }; // nobody would look for it
  return reply;
}

// CONTEXT: the job's thread.
std::expected<std::string, Error> Service::migrate(const SourceOptions& options, vmm::JobHandle& job) {
  const auto source = std::make_shared<Source>(
      vm_, options,
      SourceSurroundings{.holds = context_.holds,
                         .progress = &job.progress(),
                         .stop = job.stop(),
                         .begin_phase = [&job](const char* phase) { job.begin_phase(phase); },
                         .tell = tell_,
                         .add_state = add_state_});
  {
    const std::lock_guard guard(mutex_);
    // One that is in doubt is to be told what to do, and not to be forgotten for one that cannot begin.
    const SourcePhase phase = current_ ? current_->view().phase : SourcePhase::kHere;
    if (phase != SourcePhase::kHere && phase != SourcePhase::kGone)
      return std::unexpected(
          Error{kOperation, vm_.config().name, "a live snapshot or a migration of it is under way", Status::kBusy});
    current_ = source;
  }
  const auto figures = source->run();
  if (!figures)
    return std::unexpected(figures.error());
  Json document = {{"to", options.to.text}};
  document.update(document_of(*figures));
  return text_of(document);
}

vmm::ApiReply Service::show(const vmm::ApiRequest& request) {
  if (auto fine = vmm::Fields::of_query("migration", request).finish(); !fine)
    return vmm::error_reply(fine.error());
  const auto source = current();
  if (source == nullptr)
    return vmm::error_reply({"migration", vm_.config().name, "there was none", Status::kRefused}, 404);
  const Source::View view = source->view();
  Json document = {{"phase", name_of(view.phase)}, {"id", view.id}};
  if (!view.doubt.empty())
    document["doubt"] = view.doubt;
  document.update(document_of(view.figures));
  vmm::ApiReply reply;
  reply.body = text_of(document);
  return reply;
}

vmm::ApiReply Service::decide(const vmm::ApiRequest& request) {
  static constexpr std::array<std::pair<std::string_view, OperatorWord>, 4> kWords{
      {{"run-here", OperatorWord::kRunHere},
       {"drop", OperatorWord::kDrop},
       {"ask", OperatorWord::kAsk},
       {"take-back", OperatorWord::kTakeBack}}};
  auto fields = vmm::Fields::of_body(kOperation, request.body);
  if (!fields)
    return vmm::error_reply(fields.error());
  const auto said = fields->text("decision");
  const auto uri = fields->text("uri");
  fields->require("decision", said.has_value());
  if (auto fine = fields->finish(); !fine)
    return vmm::error_reply(fine.error());
  const auto* const word =
      std::ranges::find(kWords, said.value_or(""), &std::pair<std::string_view, OperatorWord>::first);
  if (word == kWords.end())
    return vmm::error_reply({kOperation, "decision", "must be run-here, drop, ask or take-back", Status::kUsage});
  std::optional<Address> other;
  if (uri) {
    auto address = parse_address(kOperation, *uri, Side::kSource);
    if (!address)
      return vmm::error_reply(address.error());
    other = *std::move(address);
  }
  const auto source = current();
  if (source == nullptr)
    return vmm::error_reply(
        {kOperation, vm_.config().name, "nothing is in doubt: it is not being migrated", Status::kRefused});
  if (auto told = source->tell(word->second, std::move(other)); !told)
    return vmm::error_reply(told.error());
  vmm::ApiReply reply;
  reply.body = "{}";
  return reply;
}

void Service::await_news_heard(const std::stop_token& stop) {
  const auto source = current();
  if (source != nullptr && source->view().phase == SourcePhase::kGone)
    context_.jobs.await_heard(kOperation, kToHearNews, kToHearNewsWatched, stop);
}

} // namespace stopvisor::migrate
