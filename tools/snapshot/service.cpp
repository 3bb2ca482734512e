// SPDX-License-Identifier: Apache-2.0
#include "tools/snapshot/service.h"

#include <chrono>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include <nlohmann/json.hpp>

#include "tools/snapshot/incremental.h"
#include "tools/snapshot/live_snapshot.h"
#include "tools/snapshot/vm_capture.h"
#include "vmm/control/fields.h"

namespace stopvisor::snapshot {
namespace {

using Json = nlohmann::ordered_json;
using vmm::Error;
using vmm::Status;
using HoldClock = std::chrono::steady_clock;

constexpr const char* kOperation = "snapshot create";
constexpr std::chrono::seconds kAtOnce{5}; // for a pause of what is held already

// What the VM is to do afterwards.
enum class Afterwards { kAsBefore, kResume, kKeepHeld };

struct Order {
  std::string directory;
  std::string parent; // or none
  Encoding encoding = Encoding::kRaw;
  bool disks = false; // with the images of those that the guest can write
  std::optional<Key> key;
  bool live = false; // the guest is held for an instant only
  Afterwards afterwards = Afterwards::kAsBefore;
  HoldClock::time_point deadline; // of the stop
  vmm::Peer peer;
};

std::expected<Order, Error> read_order(const vmm::ApiRequest& request) {
  auto fields = vmm::Fields::of_body(kOperation, request.body);
  if (!fields)
    return std::unexpected(fields.error());
  Order order;
  const auto directory = fields->text("directory");
  fields->require("directory", directory.has_value());
  const auto parent = fields->text("parent");
  const bool compress = fields->flag("compress").value_or(false);
  order.disks = fields->flag("disks").value_or(false);
  order.live = fields->flag("live").value_or(false);
  const auto key = fields->bytes("key");
  const std::string afterwards = fields->text("afterwards").value_or("as-before");
  order.deadline = fields->deadline();
  order.peer = request.peer;
  if (auto fine = fields->finish(); !fine)
    return std::unexpected(fine.error());
  const auto usage = [](std::string field, std::string reason) {
    return std::unexpected(Error{kOperation, std::move(field), std::move(reason), Status::kUsage});
  };
  order.directory = directory.value_or("");
  if (order.directory.empty() || order.directory.front() != '/' || order.directory.find('\0') != std::string::npos)
    return usage("directory", "must be an absolute path");
  order.parent = parent.value_or("");
  if (parent && (!parent->starts_with('/') || parent->find('\0') != std::string::npos))
    return usage("parent", "must be an absolute path");
  order.encoding = compress ? Encoding::kZstd : Encoding::kRaw;
  if (key) {
    Hash bytes{};
    if (key->size() != bytes.size())
      return usage("key", "must have " + std::to_string(bytes.size()) + " bytes");
    std::ranges::copy(*key, bytes.begin());
    order.key.emplace(bytes);
  }
  if (afterwards == "resume")
    order.afterwards = Afterwards::kResume;
  else if (afterwards == "keep-held")
    order.afterwards = Afterwards::kKeepHeld;
  else if (afterwards != "as-before")
    return usage("afterwards", "must be as-before, resume or keep-held");
  if (order.live && order.afterwards == Afterwards::kKeepHeld)
    return usage("live", "the guest is not held while its memory is written: it cannot be kept so");
  return order;
}

// A hold of the VM that nobody's resume gives back. However the job ends, it is given back.
class OwnHold {
public:
  explicit OwnHold(vmm::Vm& vm) : vm_(vm) {}
  ~OwnHold() { release(); }
  OwnHold(const OwnHold&) = delete;
  OwnHold& operator=(const OwnHold&) = delete;

  [[nodiscard]] std::expected<void, Error> take(HoldClock::time_point deadline) {
    const auto held = vm_.stops().acquire_hold({.deadline = deadline});
    if (!held)
      return std::unexpected(vm_.explain(kOperation, held.error()));
    taken_ = true;
    since_ = HoldClock::now();
    return {};
  }
  // Whether the guest has been held all the time. The end of a VM gives every hold back.
  [[nodiscard]] std::expected<void, Error> check() const {
    if (vm_.state() != vmm::VmState::kEnded && vm_.stops().holds() != 0)
      return {};
    return std::unexpected(Error{kOperation, vm_.config().name, "the VM ended meanwhile", Status::kFailed});
  }
  void release() noexcept {
    if (!std::exchange(taken_, false))
      return;
    (void)vm_.stops().release_hold(); // false: the VM has ended
    held_for_ = HoldClock::now() - since_;
  }
  [[nodiscard]] std::chrono::nanoseconds held_for() const noexcept { return held_for_; }

private:
  vmm::Vm& vm_;
  bool taken_ = false;
  HoldClock::time_point since_;
  std::chrono::nanoseconds held_for_{};
};

Json document_of(const Order& order, const Created& made, std::chrono::nanoseconds held_for, vmm::VmState state) {
  const Manifest& manifest = made.manifest;
  const auto images =
      std::ranges::count_if(manifest.disks, [](const Disk& disk) { return disk.index.has_value(); });
  Json document = {{"directory", order.directory},
                   {"id", hex_text(manifest.id)},
                   {"digest", hex_text(made.digest)},
                   {"sealed", manifest.sealed},
                   {"data_pages", manifest.data_pages},
                   {"zero_pages", manifest.zero_pages},
                   {"parent_pages", manifest.parent_pages},
                   {"file_bytes", manifest.file_bytes},
                   {"disks", images},
                   {"live", order.live},
                   {"held_us", std::chrono::duration_cast<std::chrono::microseconds>(held_for).count()},
                   {"held", state == vmm::VmState::kHeld}};
  if (!order.parent.empty())
    document["parent"] = order.parent;
  return document;
}

std::string text_of(const Json& document) {
  return document.dump(-1, ' ', false, Json::error_handler_t::replace);
}

CreateOptions create_options(const Order& order, vmm::JobHandle& job) {
  CreateOptions options;
  options.operation = kOperation;
  options.encoding = order.encoding;
  options.key = order.key ? &*order.key : nullptr;
  options.progress = &job.progress();
  options.stop = job.stop();
  return options;
}

// CONTEXT: from a callback of the stop service, until everything is written: see vm_capture.h.
std::expected<Created, Error> write_snapshot(vmm::Vm& vm, const Service::AddMore& add_more, const Order& order,
                                             const Base* base, const OwnHold& hold, vmm::JobHandle& job) {
  job.begin_phase("saving the state");
  auto contents = contents_of(kOperation, vm, order.disks);
  if (!contents)
    return std::unexpected(contents.error());
  if (add_more)
    add_more(*contents);
  CreateOptions options = create_options(order, job);
  options.confirm = [&]() -> std::expected<void, Error> {
    if (auto good = base != nullptr ? base->confirm() : std::expected<void, Error>{}; !good)
      return good;
    return hold.check();
  };
  options.go_on = [&] { return hold.check(); }; // the end of the VM waits for this callback
  if (base != nullptr)
    options.parent = base->link();
  auto creation = Creation::begin(order.directory, options);
  if (!creation)
    return std::unexpected(std::move(creation.error()));
  if (order.disks)
    job.begin_phase("copying disks");
  if (auto added = creation->add_disks(contents->disks); !added)
    return std::unexpected(std::move(added.error()));
  job.begin_phase("writing memory");
  const auto all = memory_of(kOperation, vm);
  return creation->finish(*contents, base == nullptr ? *all : *difference(base->chain(), *all));
}

// While the guest runs. RETURNS: none where none is asked for.
std::expected<std::optional<Base>, Error> open_parent(vmm::Vm& vm, const Order& order, vmm::JobHandle& job) {
  if (order.parent.empty())
    return std::nullopt;
  job.begin_phase("opening the parent");
  auto opened = Base::open(kOperation, order.parent, order.key ? &*order.key : nullptr, vm.config().name,
                           memory_of(kOperation, vm)->regions());
  if (!opened)
    return std::unexpected(std::move(opened.error()));
  return std::optional<Base>(*std::move(opened));
}

// CONTEXT: the job's thread.
std::expected<std::string, Error> make_snapshot(vmm::Vm& vm, vmm::ApiContext& context,
                                                const Service::AddMore& add_more, const Order& order,
                                                vmm::JobHandle& job) {
  const auto begin = HoldClock::now();
  auto opened = open_parent(vm, order, job);
  if (!opened)
    return std::unexpected(std::move(opened.error()));
  const std::optional<Base>& base = *opened;
  job.begin_phase("stopping the guest");
  const auto deadline = order.deadline + (base ? HoldClock::now() - begin : HoldClock::duration::zero());
  OwnHold hold(vm);
  if (auto held = hold.take(deadline); !held)
    return std::unexpected(held.error());
  std::expected<Created, Error> made = std::unexpected(Error{});
  const auto stopped = vm.stops().run(
      [&](stopper::StopContext&) {
        made = write_snapshot(vm, add_more, order, base ? &*base : nullptr, hold, job);
        return 0;
      },
      {.deadline = deadline});
  if (!stopped)
    return std::unexpected(vm.explain(kOperation, stopped.error()));
  if (!made)
    return std::unexpected(made.error());
  // What is wrong from here on is not the snapshot's: it is there.
  if (order.afterwards == Afterwards::kKeepHeld)
    std::ignore =
        context.holds.pause(order.peer, HoldClock::now() + kAtOnce); // kEnded at most, and then it is over anyway
  hold.release();
  if (order.afterwards == Afterwards::kResume)
    std::ignore = context.holds.resume(); // kRefused where nobody had paused it
  return text_of(document_of(order, *made, hold.held_for(), vm.state()));
}

// CONTEXT: the job's thread.
std::expected<std::string, Error> make_live_snapshot(vmm::Vm& vm, vmm::ApiContext& context,
                                                     const Service::AddMore& add_more, const Order& order,
                                                     vmm::JobHandle& job) {
  LiveOptions options;
  options.stop_within = order.deadline - HoldClock::now();
  auto opened = open_parent(vm, order, job);
  if (!opened)
    return std::unexpected(std::move(opened.error()));
  const std::optional<Base>& base = *opened;
  options.create = create_options(order, job);
  options.disks = order.disks;
  if (base) {
    options.parent = &base->chain();
    options.create.parent = base->link();
    options.create.confirm = [parent = &*base] { return parent->confirm(); };
  }
  options.begin_phase = [&](const char* phase) { job.begin_phase(phase); };
  if (add_more)
    options.add_more = add_more;
  const auto live = create_live(vm, order.directory, options);
  if (!live)
    return std::unexpected(live.error());
  if (order.afterwards == Afterwards::kResume)
    std::ignore = context.holds.resume(); // as above
  Json document = document_of(order, live->made, live->held_for, vm.state());
  document["preserved_bytes"] = live->figures.preserved_bytes;
  document["aside_bytes"] = live->figures.side_peak_bytes;
  document["throttled"] = live->figures.throttled;
  document["throttled_us"] =
      std::chrono::duration_cast<std::chrono::microseconds>(live->figures.throttled_for).count();
  return text_of(document);
}

} // namespace

Service::Service(vmm::Vm& vm, vmm::Api& api, AddMore add_more)
    : vm_(vm), context_(api.context()), add_more_(std::move(add_more)) {
  api.add("POST", "/v1/snapshot", [this](const vmm::ApiRequest& request) { return create(request); });
}

Service::~Service() {
  context_.jobs.end_all();
}

vmm::ApiReply Service::create(const vmm::ApiRequest& request) {
  auto order = read_order(request);
  if (!order)
    return vmm::error_reply(order.error());
  const auto job = context_.jobs.start(kOperation, order->directory, request.peer,
                                       [this, order = *order](vmm::JobHandle& handle) {
                                         const auto make = order.live ? make_live_snapshot : make_snapshot;
                                         return make(vm_, context_, add_more_, order, handle);
                                       });
  if (!job)
    return vmm::error_reply(job.error());
  vmm::ApiReply reply;
  reply.body = Json{{"job", *job}}.dump();
  reply.undo = [this, id = *job] { (void)context_.jobs.cancel(id); }; // nobody would look for it
  return reply;
}

} // namespace stopvisor::snapshot
