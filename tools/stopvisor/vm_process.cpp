// SPDX-License-Identifier: Apache-2.0
#include "tools/stopvisor/vm_process.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <memory>
#include <mutex>
#include <stop_token>
#include <thread>

#include <spdlog/spdlog.h>

#include "tools/patch/service.h"
#include "tools/snapshot/service.h"
#include "tools/snapshot/vm_restore.h"
#include "tools/stopvisor/output.h"
#include "vmm/absent_memory.h"
#include "vmm/control/api.h"
#include "vmm/control/server.h"
#include "vmm/terminal.h"
#include "vmm/unique_fd.h"
#include "vmm/urgent_thread.h"

namespace stopvisor::tools {
namespace {

using vmm::Error;

sigset_t ending_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT})
    sigaddset(&set, number);
  return set;
}

// A thread that turns the first ending signal into the VM's end, or into that of what is done before there is one,
// and a second one, where that end does not come, into the process's. A thread, because what ends a VM is no work
// for a signal handler. That end has no destructors: it takes `disks` with it.
class EndingSignals {
public:
  explicit EndingSignals(snapshot::PlacedDisks& disks) : disks_(disks) {
    const sigset_t set = ending_signals();
    ::pthread_sigmask(SIG_BLOCK, &set, nullptr); // before any thread, which inherits it
    ::signal(SIGPIPE, SIG_IGN);                  // a client that is gone is an error value
    ::signal(SIGXFSZ, SIG_IGN);                  // a file at its limit is one too: the guest's disk, a log
    signals_.reset(::signalfd(-1, &set, SFD_CLOEXEC));
    stop_.reset(::eventfd(0, EFD_CLOEXEC));
    if (!signals_ || !stop_)
      return;
    if (const int pending = wait_for_one(0); pending != 0) // it came before us
      take(pending);
    thread_ = std::thread([this] { serve(); });
  }
  ~EndingSignals() { stop(); }
  EndingSignals(const EndingSignals&) = delete;
  EndingSignals& operator=(const EndingSignals&) = delete;

  [[nodiscard]] std::expected<void, Error> watching() const {
    if (!thread_.joinable())
      return std::unexpected(Error{"run", "", "no descriptors for signals", vmm::Status::kFailed});
    return {};
  }
  // For what is done before there is a VM.
  [[nodiscard]] std::stop_token asked() const noexcept { return asked_.get_token(); }
  // From now on a signal ends `vm`; at once where one was taken before. Until stop().
  void end_of(vmm::Vm& vm) {
    const std::lock_guard guard(mutex_);
    vm_ = &vm;
    if (asked_.stop_requested())
      vm.request_end({vmm::EndKind::kRequested, ""});
  }
  void stop() noexcept {
    if (!thread_.joinable())
      return;
    const uint64_t one = 1;
    (void)!::write(stop_.get(), &one, sizeof one); // an eventfd at 0 takes it
    thread_.join();
  }
  // relaxed: of interest where somebody was asked to end, which comes after it under a lock, or after stop()
  [[nodiscard]] int taken() const noexcept { return taken_.load(std::memory_order_relaxed); }

private:
  // A VM ends in milliseconds; after this long something hangs, and a further signal means the process.
  static constexpr std::chrono::seconds kGrace{1};

  void serve() noexcept {
    if (taken() == 0) {
      const int first = wait_for_one(-1);
      if (first == 0)
        return;
      take(first);
    }
    const auto patience = std::chrono::steady_clock::now() + kGrace;
    int second = 0;
    do { // whoever presses Ctrl-C twice at once means one end
      second = wait_for_one(-1);
      if (second == 0)
        return;
    } while (std::chrono::steady_clock::now() < patience);
    vmm::RawTerminal::give_back();
    disks_.remove();
    ::_exit(128 + second); // what hangs is not waited for: no destructors
  }
  // Either end_of() comes first and we see its VM, or it sees that somebody asked.
  void take(int signal) noexcept {
    taken_.store(signal, std::memory_order_relaxed);
    const std::lock_guard guard(mutex_);
    asked_.request_stop();
    if (vm_ != nullptr)
      vm_->request_end({vmm::EndKind::kRequested, ""});
  }
  // RETURNS: the signal; 0 where stop() was called, or none came in time.
  int wait_for_one(int limit_ms) noexcept {
    std::array<pollfd, 2> entries{{{signals_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}}};
    while (::poll(entries.data(), entries.size(), limit_ms) < 0 && errno == EINTR) {
    }
    signalfd_siginfo info{};
    if (entries[0].revents == 0 || entries[1].revents != 0 ||
        ::read(signals_.get(), &info, sizeof info) != sizeof info)
      return 0;
    return int(info.ssi_signo);
  }

  snapshot::PlacedDisks& disks_;
  vmm::UniqueFd signals_;
  vmm::UniqueFd stop_;
  std::atomic<int> taken_{0};
  std::stop_source asked_;
  std::mutex mutex_;
  vmm::Vm* vm_ = nullptr; // under mutex_
  std::thread thread_;
};

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

std::expected<VmProcessEnd, Error> run_vm(vmm::VmConfig config, const snapshot::Restoration* restoration,
                                          const std::function<void(const vmm::ControlPlace&)>& ready) {
  snapshot::PlacedDisks disks; // until the guest has them
  EndingSignals signals(disks);
  if (auto watching = signals.watching(); !watching)
    return std::unexpected(watching.error());
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
  auto vm = vmm::Vm::create(std::move(config));
  if (!vm)
    return std::unexpected(vm.error());
  if (restoration != nullptr)
    if (auto done = restoration->into(
            **vm, [&place, &disks](const Error& error) { end_process(*place, disks, error); }, signals.asked());
        !done)
      return end_of_restoration(place->name(), signals, done.error());
  (*vm)->tell_events_to([name = place->name()](const std::string& event) { spdlog::info("{}: {}", name, event); });
  // In the order in which each needs the one before: gone in reverse.
  vmm::Api api(**vm);
  patch::Service patches(**vm, api);
  if (restoration != nullptr)
    if (const auto* ledger = restoration->section(vmm::StateKind::kPatchLedger); ledger != nullptr)
      if (auto done = patches.engine().restore_state(*ledger); !done)
        return std::unexpected(done.error());
  snapshot::Service snapshots(**vm, api, [&](snapshot::Contents& contents) {
    contents.state.push_back(patches.engine().save_state());
    for (const patch::Ledger::Entry& record : patches.engine().list())
      contents.patches.emplace_back(record->manifest.name, record->manifest.version);
  });
  auto listening = place->listen();
  if (!listening)
    return std::unexpected(listening.error());
  signals.end_of(**vm);
  if (auto started = (*vm)->start(); !started)
    return end_of_failed(**vm, signals, started.error());
  disks.keep();
  auto server = vmm::ControlServer::start(std::move(*listening), api);
  if (!server) {
    (*vm)->request_end({vmm::EndKind::kVmmError, server.error().message() + "\n"});
    return end_of_failed(**vm, signals, server.error());
  }
  if (restoration != nullptr && restoration->options().prefault)
    bring_in_memory(**vm, api, restoration->options().directory, *place, disks);
  ready(*place);
  if (!vmm::may_lift_threads())
    spdlog::warn("{}: this process may not raise its threads' priority (CAP_SYS_NICE, or RLIMIT_RTPRIO of 1): with "
                 "more vCPUs than processors, stops wait for the host's scheduler",
                 place->name());
  spdlog::info("{}: running, pid {}, {} vCPU{}", place->name(), ::getpid(), (*vm)->cpu_count(),
               (*vm)->cpu_count() == 1 ? "" : "s");
  VmProcessEnd ended{place->name(), (*vm)->wait_for_end(), 0};
  (*server)->stop();
  signals.stop();
  ended.signal = ended.end.kind == vmm::EndKind::kRequested ? signals.taken() : 0;
  spdlog::info("{}: ended", place->name());
  return ended;
}

} // namespace stopvisor::tools
