// SPDX-License-Identifier: Apache-2.0
#include "tools/stopvisor/ending_signals.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <utility>

#include "vmm/terminal.h"

namespace stopvisor::tools {
namespace {

using vmm::Error;

// A VM ends in milliseconds; after this long something hangs, and a further signal means the process.
constexpr std::chrono::seconds kGrace{1};

sigset_t ending_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT})
    sigaddset(&set, number);
  return set;
}

} // namespace

EndingSignals::EndingSignals(std::function<void()> last_act) : last_act_(std::move(last_act)) {
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

std::expected<void, Error> EndingSignals::watching() const {
  if (!thread_.joinable())
    return std::unexpected(Error{"run", "", "no descriptors for signals", vmm::Status::kFailed});
  return {};
}

void EndingSignals::end_of(vmm::Vm& vm) {
  const std::lock_guard guard(mutex_);
  vm_ = &vm;
  if (asked_.stop_requested())
    vm.request_end({vmm::EndKind::kRequested, ""});
}

void EndingSignals::stop() noexcept {
  if (!thread_.joinable())
    return;
  const uint64_t one = 1;
  (void)!::write(stop_.get(), &one, sizeof one); // an eventfd at 0 takes it
  thread_.join();
}

void EndingSignals::serve() noexcept {
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
  if (last_act_)
    last_act_();
  ::_exit(128 + second); // what hangs is not waited for: no destructors
}

// Either end_of() comes first and we see its VM, or it sees that somebody asked.
void EndingSignals::take(int signal) noexcept {
  taken_.store(signal, std::memory_order_relaxed);
  const std::lock_guard guard(mutex_);
  asked_.request_stop();
  if (vm_ != nullptr)
    vm_->request_end({vmm::EndKind::kRequested, ""});
}

// RETURNS: the signal; 0 where stop() was called, or none came in time.
int EndingSignals::wait_for_one(int limit_ms) noexcept {
  std::array<pollfd, 2> entries{{{signals_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}}};
  while (::poll(entries.data(), entries.size(), limit_ms) < 0 && errno == EINTR) {
  }
  signalfd_siginfo info{};
  if (entries[0].revents == 0 || entries[1].revents != 0 ||
      ::read(signals_.get(), &info, sizeof info) != sizeof info)
    return 0;
  return int(info.ssi_signo);
}

} // namespace stopvisor::tools
