// SPDX-License-Identifier: Apache-2.0
#include "tools/stopvisor/long_work.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <ctime>
#include <system_error>
#include <thread>

#include "tools/stopvisor/progress_line.h"
#include "vmm/unique_fd.h"

namespace stopvisor::tools {
namespace {

using vmm::Error;

constexpr int kShowEveryMs = 200; // and not before: what takes no longer needs no line

// A thread that takes the signals, which are blocked for all as long as this lives, and shows progress.
class Watcher {
public:
  Watcher(const std::string& operation, const vmm::Progress& progress)
      : operation_(operation), progress_(progress) {
    sigemptyset(&set_);
    for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT})
      sigaddset(&set_, number);
    ::pthread_sigmask(SIG_BLOCK, &set_, &before_);
    signals_.reset(::signalfd(-1, &set_, SFD_CLOEXEC | SFD_NONBLOCK));
    over_.reset(::eventfd(0, EFD_CLOEXEC));
  }
  ~Watcher() {
    end();
    const timespec at_once{};
    while (::sigtimedwait(&set_, nullptr, &at_once) > 0) { // too late
    }
    ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  Watcher(const Watcher&) = delete;
  Watcher& operator=(const Watcher&) = delete;

  [[nodiscard]] std::expected<void, Error> begin() {
    if (!signals_ || !over_)
      return std::unexpected(Error{operation_, "", "no descriptors for signals", vmm::Status::kFailed});
    try {
      thread_ = std::thread([this] { watch(); });
    } catch (const std::system_error& error) {
      return std::unexpected(Error{operation_, "", error.code().message(), vmm::Status::kFailed});
    }
    return {};
  }
  [[nodiscard]] std::stop_token asked() const noexcept { return asked_.get_token(); }
  // RETURNS: the signal that was taken, or 0.
  int end() noexcept {
    if (thread_.joinable()) {
      const uint64_t one = 1;
      (void)!::write(over_.get(), &one, sizeof one); // an eventfd at 0 takes it
      thread_.join();
    }
    return taken_;
  }

private:
  void watch() noexcept {
    ProgressLine line;
    std::array<pollfd, 2> entries{{{signals_.get(), POLLIN, 0}, {over_.get(), POLLIN, 0}}};
    while (entries[1].revents == 0) {
      if (::poll(entries.data(), entries.size(), line.on_terminal() ? kShowEveryMs : -1) == 0)
        line.show(operation_, progress_.done_bytes.load(std::memory_order_relaxed),
                  progress_.total_bytes.load(std::memory_order_relaxed));
      if (entries[0].revents != 0)
        take();
    }
  }
  void take() noexcept {
    signalfd_siginfo info{};
    if (::read(signals_.get(), &info, sizeof info) != sizeof info)
      return;
    taken_ = int(info.ssi_signo);
    asked_.request_stop();
  }

  const std::string operation_;
  const vmm::Progress& progress_;
  sigset_t set_{};
  sigset_t before_{};
  vmm::UniqueFd signals_;
  vmm::UniqueFd over_;
  std::stop_source asked_;
  int taken_ = 0; // the thread's, until it has ended
  std::thread thread_;
};

} // namespace

std::expected<void, Error> do_long_work(const std::string& operation,
                                        const std::function<std::expected<void, Error>(const LongWork&)>& work) {
  vmm::Progress progress;
  Watcher watcher(operation, progress);
  if (auto begun = watcher.begin(); !begun)
    return begun;
  auto done = work({watcher.asked(), progress});
  if (const int signal = watcher.end(); signal != 0 && !done)
    done.error().status = vmm::Status{128 + signal};
  return done;
}

} // namespace stopvisor::tools
