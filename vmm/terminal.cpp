// SPDX-License-Identifier: Apache-2.0
#include "vmm/terminal.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <termios.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <utility>

namespace stopvisor::vmm {
namespace {

// kOff: no RawTerminal. kCooked: there is one, but the terminal is the shell's now. kRaw: it is ours.
enum class Mode { kOff, kCooked, kRaw };

// What signal handlers need. Written before the mode leaves kOff, and not changed until it is kOff again.
struct State {
  int terminal = -1;
  int continued = -1;
  termios cooked{};
  termios raw{};
};
State g_state;
// Release on leaving kOff publishes g_state; each acquire below pairs with it. Lock-free, so that handlers
// may use it.
std::atomic<Mode> g_mode{Mode::kOff};
static_assert(std::atomic<Mode>::is_always_lock_free);

// Ends with the former handler, which may be a sanitizer's.
constexpr std::array kFatalSignals{SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS};
// Ours only where the process has not made other plans.
constexpr std::array kEndingSignals{SIGINT, SIGTERM, SIGHUP, SIGQUIT};

struct Installed {
  int number = 0;
  bool ours = false;
  struct sigaction former{};
};
std::array<Installed, kFatalSignals.size() + kEndingSignals.size() + 2> g_installed;

// ---- Async-signal-safe from here on ----------------------------------------------------------------------

// Sets the terminal's mode. Also from the background, where SIGTTOU would stop us unless it is blocked.
void set_attributes(const termios& attributes) {
  sigset_t block, former;
  ::sigemptyset(&block);
  ::sigaddset(&block, SIGTTOU);
  ::pthread_sigmask(SIG_BLOCK, &block, &former);
  while (::tcsetattr(g_state.terminal, TCSANOW, &attributes) != 0 && errno == EINTR) {
  }
  ::pthread_sigmask(SIG_SETMASK, &former, nullptr);
}

void restore() {
  Mode expected = Mode::kRaw;
  // Acquire: pairs with the release in enter(). Of several callers one restores.
  if (g_mode.compare_exchange_strong(expected, Mode::kCooked, std::memory_order_acquire, std::memory_order_relaxed))
    set_attributes(g_state.cooked);
}

// True too where it is not our controlling terminal: nobody else's job control is in the way then.
bool in_foreground() {
  const pid_t owner = ::tcgetpgrp(g_state.terminal);
  return owner < 0 || owner == ::getpgrp();
}

void make_raw() {
  Mode expected = Mode::kCooked;
  // Acquire: as in restore().
  if (in_foreground() &&
      g_mode.compare_exchange_strong(expected, Mode::kRaw, std::memory_order_acquire, std::memory_order_relaxed))
    set_attributes(g_state.raw);
}

void put_back_former(int number) {
  for (const Installed& installed : g_installed) {
    if (installed.ours && installed.number == number)
      ::sigaction(number, &installed.former, nullptr);
  }
}

// Restores, then lets the signal do what it would have done without us.
void on_end(int number, siginfo_t* info, void*) {
  const int saved_errno = errno;
  restore();
  put_back_former(number);
  // A fault comes again when the faulting instruction is run again, with its true address; what was sent
  // (si_code <= 0) does not.
  if (info->si_code <= 0)
    ::raise(number);
  errno = saved_errno;
}

void on_stop(int number, siginfo_t*, void*) {
  const int saved_errno = errno;
  restore();
  struct sigaction stop{};
  struct sigaction ours{};
  stop.sa_handler = SIG_DFL;
  ::sigaction(number, &stop, &ours);
  sigset_t unblock, former;
  ::sigemptyset(&unblock);
  ::sigaddset(&unblock, number);
  ::raise(number);
  ::pthread_sigmask(SIG_UNBLOCK, &unblock, &former); // stops here, until SIGCONT
  ::pthread_sigmask(SIG_SETMASK, &former, nullptr);
  ::sigaction(number, &ours, nullptr);
  make_raw(); // the kernel does not stop an orphaned process group: no SIGCONT comes then
  errno = saved_errno;
}

void on_continue(int, siginfo_t*, void*) {
  const int saved_errno = errno;
  make_raw();
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(g_state.continued, &one, sizeof(one)); // full: it is readable
  errno = saved_errno;
}

// ---- Ordinary code ----------------------------------------------------------------------------------------

using Handler = void (*)(int, siginfo_t*, void*);

void install(Installed& place, int number, Handler handler, bool only_if_default) {
  struct sigaction action{};
  action.sa_sigaction = handler;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
  ::sigfillset(&action.sa_mask);
  place = Installed{number, false, {}};
  ::sigaction(number, nullptr, &place.former);
  const bool is_default = (place.former.sa_flags & SA_SIGINFO) == 0 && place.former.sa_handler == SIG_DFL;
  if (only_if_default && !is_default)
    return;
  place.ours = true; // before the handler can run, which looks here
  ::sigaction(number, &action, nullptr);
}

void install_all() {
  size_t i = 0;
  for (const int number : kFatalSignals)
    install(g_installed[i++], number, on_end, false);
  for (const int number : kEndingSignals)
    install(g_installed[i++], number, on_end, true);
  install(g_installed[i++], SIGTSTP, on_stop, true);
  install(g_installed[i], SIGCONT, on_continue, true);
}

bool is_ours(const struct sigaction& action) {
  return (action.sa_flags & SA_SIGINFO) != 0 &&
         (action.sa_sigaction == on_end || action.sa_sigaction == on_stop || action.sa_sigaction == on_continue);
}

void uninstall_all() {
  for (Installed& installed : g_installed) {
    struct sigaction current{};
    if (installed.ours && ::sigaction(installed.number, nullptr, &current) == 0 && is_ours(current))
      ::sigaction(installed.number, &installed.former, nullptr);
    installed.ours = false;
  }
}

} // namespace

std::expected<RawTerminal, Error> RawTerminal::enter(int fd) {
  RawTerminal terminal;
  if (::isatty(fd) != 1)
    return terminal;
  const char* const operation = "use terminal";
  // Acquire: pairs with the release of the former object's end.
  if (g_mode.load(std::memory_order_acquire) != Mode::kOff)
    return std::unexpected(Error{operation, "", "it is in use already", Status::kFailed});
  terminal.terminal_ = UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  terminal.continued_ = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  State state{terminal.terminal_.get(), terminal.continued_.get(), {}, {}};
  if (!terminal.terminal_ || !terminal.continued_ || ::tcgetattr(state.terminal, &state.cooked) != 0) {
    auto error = system_error(operation, "", errno);
    terminal.terminal_.reset(); // nothing to restore
    return std::unexpected(std::move(error));
  }
  state.raw = state.cooked;
  ::cfmakeraw(&state.raw);
  state.raw.c_oflag = state.cooked.c_oflag;

  g_state = state;
  // Release: publishes g_state to handlers and exit(), see g_mode.
  g_mode.store(Mode::kCooked, std::memory_order_release);
  static const int registered = std::atexit(restore); // once per process, not per terminal
  if (registered != 0)
    return std::unexpected(Error{operation, "", "exit handler refused", Status::kFailed});
  install_all();
  make_raw();
  return terminal;
}

void RawTerminal::give_back() noexcept {
  restore();
}

RawTerminal::~RawTerminal() {
  if (!terminal_)
    return;
  restore();
  uninstall_all();
  // Release: g_state may be used anew, pairs with the acquire in enter().
  g_mode.store(Mode::kOff, std::memory_order_release);
}

} // namespace stopvisor::vmm
