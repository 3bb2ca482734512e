// SPDX-License-Identifier: Apache-2.0
#include "tools/stopvisor/incoming_process.h"

#include <unistd.h>

#include <array>
#include <memory>
#include <stop_token>
#include <thread>
#include <tuple>
#include <utility>

#include <spdlog/spdlog.h>

#include "tools/migrate/destination.h"
#include "tools/migrate/doorkeeper.h"
#include "tools/migrate/waiting.h"
#include "tools/stopvisor/ending_signals.h"
#include "tools/stopvisor/incoming_api.h"
#include "tools/stopvisor/vm_services.h"
#include "vmm/control/server.h"

namespace stopvisor::tools {
namespace {

using vmm::Error;
using vmm::Status;

constexpr const char* kOperation = "run --incoming";

// Tells the networks behind the taps where the guest is now, some times: a frame can be lost, and a switch may
// still be told otherwise by what the source had sent last.
void announce(vmm::Vm& vm, const std::stop_token& stop) {
  static constexpr std::array<int, 5> kAfterMs{0, 50, 150, 250, 350};
  for (const int after : kAfterMs) {
    if (!migrate::sleep_until(migrate::after(std::chrono::milliseconds(after)), stop))
      return;
    vm.announce_networks();
  }
}

// The source's machine, as it is to be here.
std::expected<vmm::VmConfig, Error> adapt(vmm::VmConfig config, const IncomingOrder& order) {
  const auto none = [](const char* what, size_t number) {
    return std::unexpected(Error{kOperation, std::string(what) + " " + std::to_string(number),
                                 "the machine that arrives has none of this number", Status::kUsage});
  };
  for (const auto& [number, path] : order.disks) {
    if (number >= config.disks.size())
      return none("disk", number);
    config.disks[number].path = path;
  }
  for (const auto& [number, tap] : order.taps) {
    if (number >= config.nets.size())
      return none("network", number);
    config.nets[number].tap = tap;
  }
  config.backing = order.backing.value_or(config.backing);
  config.serial = order.serial;
  config.serial_path = order.serial_path;
  return config;
}

// NOLINTBEGIN(bugprone-unchecked-optional-access): what is used is there, by the order of run()

// All of it, in the order in which each part needs the one before.
class Arrival {
public:
  Arrival(const IncomingOrder& order, EndingSignals& signals) : order_(order), signals_(signals) {}

  std::expected<VmProcessEnd, Error>
  run(const std::function<void(const vmm::ControlPlace*, const std::string&)>& waiting) {
    if (auto ready = open(); !ready)
      return ended(ready.error());
    if (order_.name)
      if (auto named = take_name(*order_.name); !named)
        return ended(named.error());
    waiting(place_ ? &*place_ : nullptr, listener_->place());
    spdlog::info("waiting for a migration at {}, pid {}", listener_->place(), ::getpid());
    if (auto made = make_machine(); !made) {
      destination_->refuse(made.error());
      return ended(made.error());
    }
    const migrate::DestinationSteps steps{
        .restore_more = [this](std::span<const vmm::StateSection> state) { return services_->restore(state); },
        .let_go = [this](bool held) { let_go(held); }};
    if (auto arrived = destination_->receive(*vm_, steps); !arrived)
      return ended(arrived.error());
    return live();
  }

private:
  std::expected<void, Error> open() {
    auto listener = migrate::Listener::open(kOperation, order_.from, order_.insecure);
    if (!listener)
      return std::unexpected(std::move(listener.error()));
    listener_ = *std::move(listener);
    doorkeeper_.emplace(kOperation, *listener_, [](const Error& stranger) {
      spdlog::warn("a caller was sent away: {}", stranger.message());
    });
    destination_.emplace(*doorkeeper_, migrate::DestinationOptions{
                                           .operation = kOperation,
                                           .wall_clock = order_.wall_clock,
                                           .keep = order_.keep,
                                           .stop = signals_.asked(),
                                           .tell = [](const std::string& text) { spdlog::warn("{}", text); }});
    return {};
  }

  // From now on there is a control socket.
  std::expected<void, Error> take_name(const std::string& name) {
    auto place = vmm::ControlPlace::claim(name);
    if (!place) {
      if (!order_.name)
        place.error().reason += "; another name can be given with --name";
      place.error().operation = kOperation;
      return std::unexpected(std::move(place.error()));
    }
    place_.emplace(*std::move(place));
    auto listening = place_->listen();
    if (!listening)
      return std::unexpected(std::move(listening.error()));
    incoming_.emplace(name, listener_->place(), *destination_, [this] { signals_.ask(); });
    switched_.emplace(*incoming_);
    auto server = vmm::ControlServer::start(std::move(*listening), *switched_);
    if (!server)
      return std::unexpected(std::move(server.error()));
    server_ = *std::move(server);
    return {};
  }

  std::expected<void, Error> make_machine() {
    auto config = destination_->await_machine();
    if (!config)
      return std::unexpected(std::move(config.error()));
    if (!place_)
      if (auto named = take_name(destination_->view().vm); !named)
        return named;
    config->name = place_->name();
    auto adapted = adapt(*std::move(config), order_);
    if (!adapted)
      return std::unexpected(std::move(adapted.error()));
    auto vm = vmm::Vm::create(*std::move(adapted));
    if (!vm)
      return std::unexpected(std::move(vm.error()));
    vm_ = *std::move(vm);
    vm_->tell_events_to([name = place_->name()](const std::string& event) { spdlog::info("{}: {}", name, event); });
    services_.emplace(*vm_);
    return {};
  }

  // CONTEXT: the source waits for it, and the guest. It was started held, which is booked as a pause.
  void let_go(bool held) {
    if (!held && !order_.paused)
      std::ignore = services_->api().context().holds.resume(); // there is that pause
    switched_->switch_to(services_->api());
    signals_.end_of(*vm_);
  }

  std::expected<VmProcessEnd, Error> live() {
    const std::jthread announcing([this](const std::stop_token& stop) { announce(*vm_, stop); });
    const migrate::Destination::View from = destination_->view();
    spdlog::info("{}: running, pid {}, {} vCPU{}; it came from {} ({})", place_->name(), ::getpid(),
                 vm_->cpu_count(), vm_->cpu_count() == 1 ? "" : "s", from.vm, from.source);
    VmProcessEnd end{place_->name(), vm_->wait_for_end(), 0};
    services_->await_news_heard(signals_.asked());
    server_->stop();
    signals_.stop();
    end.signal = end.end.kind == vmm::EndKind::kRequested ? signals_.taken() : 0;
    spdlog::info("{}: {}", place_->name(), how_it_ended(end.end));
    return end;
  }

  // Why there is no guest here; once a source has called, it says to who may start the guest elsewhere that it
  // never ran here. Where somebody called it off, that is no failure.
  std::expected<VmProcessEnd, Error> ended(Error why) {
    if (destination_ && destination_->view().phase != migrate::DestinationPhase::kWaiting)
      why.reason += "; the guest never ran here";
    const bool called_off = signals_.asked().stop_requested();
    if (vm_)
      vm_->request_end({vmm::EndKind::kRequested, ""});
    if (server_)
      server_->stop();
    signals_.stop();
    if (!called_off)
      return std::unexpected(std::move(why));
    spdlog::info("{}", why.message());
    return VmProcessEnd{place_ ? place_->name() : "", {vmm::EndKind::kRequested, ""}, signals_.taken()};
  }

  const IncomingOrder& order_;
  EndingSignals& signals_;
  std::unique_ptr<migrate::Listener> listener_;
  std::optional<migrate::Doorkeeper> doorkeeper_;
  std::optional<vmm::ControlPlace> place_;
  std::unique_ptr<vmm::Vm> vm_;
  std::optional<VmServices> services_;
  std::optional<migrate::Destination> destination_;
  std::optional<IncomingApi> incoming_;
  std::optional<SwitchedApi> switched_;
  std::unique_ptr<vmm::ControlServer> server_;
};

// NOLINTEND(bugprone-unchecked-optional-access)

} // namespace

std::expected<VmProcessEnd, Error>
run_incoming(const IncomingOrder& order,
             const std::function<void(const vmm::ControlPlace*, const std::string&)>& waiting) {
  EndingSignals signals;
  if (auto watching = signals.watching(); !watching)
    return std::unexpected(watching.error());
  Arrival arrival(order, signals);
  return arrival.run(waiting);
}

} // namespace stopvisor::tools
