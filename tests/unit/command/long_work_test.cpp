// SPDX-License-Identifier: Apache-2.0
// Work of the command's own: called off by a signal, and seen on a terminal.
#include "tools/stopvisor/long_work.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <thread>

#include "tools/stopvisor/progress_line.h"
#include "vmm/unique_fd.h"

namespace stopvisor::tools {
namespace {

using vmm::Error;
using vmm::Status;

const Error kStopped{"test", "it", "was cancelled", Status::kFailed};

void await_stop(const LongWork& work) {
  while (!work.stop.stop_requested())
    std::this_thread::yield();
}

bool is_blocked(int signal) {
  sigset_t now;
  ::pthread_sigmask(SIG_BLOCK, nullptr, &now);
  return sigismember(&now, signal) == 1;
}

TEST(LongWorkTest, ASignalCallsItOffAndIsItsStatus) {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) {
    const auto done = do_long_work("test", [&](const LongWork& work) -> std::expected<void, Error> {
      ::kill(::getpid(), signal);
      await_stop(work);
      return std::unexpected(kStopped);
    });
    ASSERT_FALSE(done.has_value());
    EXPECT_EQ(done.error().message(), "test: it: was cancelled");
    EXPECT_EQ(int(done.error().status), 128 + signal);
    EXPECT_FALSE(is_blocked(signal));
  }
}

TEST(LongWorkTest, ASignalThatComesTooLateTakesNothingAway) {
  for (const bool seen : {true, false})
    EXPECT_TRUE(do_long_work("test", [&](const LongWork& work) -> std::expected<void, Error> {
                  ::kill(::getpid(), SIGTERM);
                  if (seen)
                    await_stop(work);
                  return {};
                }).has_value());
  EXPECT_FALSE(is_blocked(SIGTERM)); // and none is pending: it would have ended us
}

TEST(LongWorkTest, AnErrorOfItsOwnKeepsItsStatus) {
  const auto done = do_long_work("test", [&](const LongWork&) -> std::expected<void, Error> {
    return std::unexpected(Error{"test", "it", "is bad", Status::kRefused});
  });
  ASSERT_FALSE(done.has_value());
  EXPECT_EQ(done.error().status, Status::kRefused);
}

// stderr is another file for a scope.
class StandardError {
public:
  explicit StandardError(int fd) : before_(::dup(STDERR_FILENO)) { ::dup2(fd, STDERR_FILENO); }
  ~StandardError() { ::dup2(before_.get(), STDERR_FILENO); }

private:
  vmm::UniqueFd before_;
};

TEST(LongWorkTest, ATerminalShowsHowFarItIsAndIsLeftClean) {
  const vmm::UniqueFd terminal(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  ASSERT_TRUE(terminal);
  ASSERT_EQ(::grantpt(terminal.get()), 0);
  ASSERT_EQ(::unlockpt(terminal.get()), 0);
  std::array<char, 64> name{};
  ASSERT_EQ(::ptsname_r(terminal.get(), name.data(), name.size()), 0);
  const vmm::UniqueFd behind(::open(name.data(), O_RDWR | O_NOCTTY | O_CLOEXEC));
  ASSERT_TRUE(behind);
  std::string shown;
  const auto read_until = [&](const std::string& what) {
    std::array<char, 256> buffer{};
    while (shown.find(what) == std::string::npos) {
      const ssize_t got = ::read(terminal.get(), buffer.data(), buffer.size());
      if (got <= 0)
        return false;
      shown.append(buffer.data(), static_cast<size_t>(got));
    }
    return true;
  };
  {
    const StandardError on_terminal(behind.get());
    const auto done = do_long_work("copy", [&](const LongWork& work) -> std::expected<void, Error> {
      work.progress.total_bytes = 4 << 20;
      work.progress.done_bytes = 1 << 20;
      EXPECT_TRUE(read_until("\r\033[Kcopy: 1 MiB of 4 MiB (25%)")) << shown;
      return {};
    });
    EXPECT_TRUE(done.has_value());
  }
  ASSERT_EQ(::write(behind.get(), "end", 3), 3);
  EXPECT_TRUE(read_until("end"));
  EXPECT_TRUE(shown.ends_with("\r\033[Kend")) << shown;
}

TEST(ProgressLineTest, APipeIsShownNothing) {
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK), 0);
  const vmm::UniqueFd reading(ends[0]);
  const vmm::UniqueFd writing(ends[1]);
  {
    const StandardError to_a_pipe(writing.get());
    ProgressLine line;
    EXPECT_FALSE(line.on_terminal());
    line.show("copy", 1, 4);
  }
  std::array<char, 16> buffer{};
  EXPECT_EQ(::read(reading.get(), buffer.data(), buffer.size()), -1);
}

} // namespace
} // namespace stopvisor::tools
