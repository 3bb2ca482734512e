// SPDX-License-Identifier: Apache-2.0
#include "tools/stopvisor/vm_process.h"

#include <unistd.h>

#include <memory>

#include <spdlog/spdlog.h>

#include "tools/snapshot/vm_restore.h"
#include "tools/stopvisor/ending_signals.h"
#include "tools/stopvisor/output.h"
#include "tools/stopvisor/vm_services.h"
#include "vmm/absent_memory.h"
#include "vmm/control/api.h"
#include "vmm/control/server.h"
#include "vmm/terminal.h"
#include "vmm/urgent_thread.h"

namespace stopvisor::tools {
namespace {

using vmm::Error;

// A page of the guest's memory cannot be had, and somebody waits for it where nobody can get him out: no
// destructors. A guest that has not run yet needs no disks. CONTEXT: any thread.
[[noreturn]] void end_process(vmm::ControlPlace& place, snapshot::PlacedDisks& disks, Error error) {
  error.status = vmm::Status::kFailed;
  (void)print_error(error, "run", false);
  vmm::RawTerminal::give_back();
  place.release();
  disks.remove();
  ::_exit(int(error.status));
}

// The rest of a snapshot is read while its machine is made, and not after run_vm(), as its process may end then.
class Reading {
public:
  explicit Reading(snapshot::Restoration* restoration) : restoration_(restoration) {
    if (restoration_ != nullptr)
      restoration_->read_on();
  }
  ~Reading() {
    if (restoration_ != nullptr)
      restoration_->end_reading();
  }
  Reading(const Reading&) = delete;
  Reading& operator=(const Reading&) = delete;

private:
  snapshot::Restoration* restoration_;
};

// A job that ends by itself when the guest has all of its memory.
void bring_in_memory(vmm::Vm& vm, vmm::Api& api, const std::string& directory, vmm::ControlPlace& place,
                     snapshot::PlacedDisks& disks) {
  const vmm::Peer us{.pid = ::getpid(), .uid = ::getuid()};
  const auto work = [&vm, &place, &disks](vmm::JobHandle& job) -> std::expected<std::string, Error> {
    job.begin_phase("bringing in memory");
    auto done = vm.absent_memory()->bring_all(job.stop(), &job.progress());
    if (!done && !job.stop().stop_requested())
      end_process(place, disks, done.error()); // the guest would come to it sooner or later
    if (!done)
      return std::unexpected(std::move(done.error()));
    return std::string("{}");
  };
  if (const auto job = api.context().jobs.start("restore", directory, us, work); !job)
    spdlog::warn("{}", job.error().message() + ": memory comes when the guest touches it");
}

// How a VM whose start failed with `error` ended. Where somebody ended it while it started, that is why, and no
// failure.
std::expected<VmProcessEnd, Error> end_of_failed(vmm::Vm& vm, EndingSignals& signals, const Error& error) {
  const vmm::VmEnd end = vm.wait_for_end();
  signals.stop();
  if (end.kind != vmm::EndKind::kRequested)
    return std::unexpected(error);
  return VmProcessEnd{vm.config().name, end, signals.taken()};
}

// How a restoration that failed with `error` ended the process: the same, where a signal had called it off.
std::expected<VmProcessEnd, Error> end_of_restoration(const std::string& name, EndingSignals& signals,
                                                      const Error& error) {
  const bool called_off = signals.asked().stop_requested();
  signals.stop();
  if (!called_off)
    return std::unexpected(error);
  return VmProcessEnd{name, {vmm::EndKind::kRequested, ""}, signals.taken()};
}

} // namespace

std::string how_it_ended(const vmm::VmEnd& end) {
  return end.kind == vmm::EndKind::kMigrated ? "ended here; its guest goes on at " + end.message : "ended";
}

std::expected<VmProcessEnd, Error> run_vm(vmm::VmConfig config, snapshot::Restoration* restoration,
                                          const std::function<void(const vmm::ControlPlace&)>& ready) {
  snapshot::PlacedDisks disks; // until the guest has them
  EndingSignals signals([&disks] { disks.remove(); });
  if (auto watching = signals.watching(); !watching)
    return std::unexpected(watching.error());
  const Reading reading(restoration); // its thread takes none of those signals
  auto place = config.name.empty() ? vmm::ControlPlace::claim_generated() : vmm::ControlPlace::claim(config.name);
  if (!place) {
    if (place.error().object.empty()) // the name is what is wrong, not the socket
      place.error().operation = "run";
    return std::unexpected(place.error());
  }
  config.name = place->name();
  if (restoration != nullptr)
    if (auto placed = restoration->place_disks(disks, signals.asked()); !placed)
      return end_of_restoration(place->name(), signals, placed.error());
  auto vm = restoration != nullptr ? vmm::Vm::begin(std::move(config)) : vmm::Vm::create(std::move(config));
  if (!vm)
    return std::unexpected(vm.error());
  if (restoration != nullptr)
    if (auto done = restoration->into(
            **vm, [&place, &disks](const Error& error) { end_process(*place, disks, error); }, signals.asked());
        !done)
      return end_of_restoration(place->name(), signals, done.error());
  (*vm)->tell_events_to([name = place->name()](const std::string& event) { spdlog::info("{}: {}", name, event); });
  VmServices services(**vm);
  if (restoration != nullptr)
    if (auto done = services.restore(restoration->state()); !done)
      return std::unexpected(done.error());
  auto listening = place->listen();
  if (!listening)
    return std::unexpected(listening.error());
  signals.end_of(**vm);
  if (auto started = (*vm)->start(); !started)
    return end_of_failed(**vm, signals, started.error());
  disks.keep();
  auto server = vmm::ControlServer::start(std::move(*listening), services.api());
  if (!server) {
    (*vm)->request_end({vmm::EndKind::kVmmError, server.error().message() + "\n"});
    return end_of_failed(**vm, signals, server.error());
  }
  if (restoration != nullptr && restoration->options().prefault)
    bring_in_memory(**vm, services.api(), restoration->options().directory, *place, disks);
  ready(*place);
  if (!vmm::may_lift_threads())
    spdlog::warn("{}: this process may not raise its threads' priority (CAP_SYS_NICE, or RLIMIT_RTPRIO of 1): with "
                 "more vCPUs than processors, stops wait for the host's scheduler",
                 place->name());
  spdlog::info("{}: running, pid {}, {} vCPU{}", place->name(), ::getpid(), (*vm)->cpu_count(),
               (*vm)->cpu_count() == 1 ? "" : "s");
  VmProcessEnd ended{place->name(), (*vm)->wait_for_end(), 0};
  services.await_news_heard(signals.asked());
  (*server)->stop();
  signals.stop();
  ended.signal = ended.end.kind == vmm::EndKind::kRequested ? signals.taken() : 0;
  spdlog::info("{}: {}", place->name(), how_it_ended(ended.end));
  return ended;
}

} // namespace stopvisor::tools
