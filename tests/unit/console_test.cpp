// SPDX-License-Identifier: Apache-2.0
// What lies between the user and the serial port: output through a pipe that may be stuck, input with its
// escape key, and a terminal that is given back however the process ends.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <string>

#include "vmm/console_input.h"
#include "vmm/serial_output.h"
#include "vmm/terminal.h"

namespace stopvisor::vmm {
namespace {

struct Pipe {
  Pipe() {
    std::array<int, 2> ends{};
    EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    read = UniqueFd(ends[0]);
    write = UniqueFd(ends[1]);
  }
  UniqueFd read, write;
};

std::string read_to_end(int fd) {
  std::string text;
  std::array<char, 4096> buffer;
  for (ssize_t got; (got = ::read(fd, buffer.data(), buffer.size())) > 0;)
    text.append(buffer.data(), static_cast<size_t>(got));
  return text;
}

void put(SerialOutput& output, std::string_view text) {
  for (const char c : text)
    output.put(std::byte(c));
}

TEST(SerialOutput, EverythingIsWrittenBeforeItGoes) {
  Pipe pipe;
  std::string sent;
  for (int i = 0; i < 5000; ++i)
    sent += std::to_string(i) + "\n";
  auto received = std::async(std::launch::async, [&] { return read_to_end(pipe.read.get()); });
  {
    auto output = SerialOutput::to_fd(pipe.write.get());
    ASSERT_TRUE(output) << output.error().message();
    put(**output, sent);
  }
  pipe.write.reset();
  EXPECT_EQ(received.get(), sent);
}

// The numbers in the notes of dropped bytes, summed, and the text without the notes.
uint64_t take_notes(std::string& text) {
  const std::string begin = "\r\n[stopvisor: ", end = " bytes of output dropped]\r\n";
  uint64_t dropped = 0;
  for (size_t at; (at = text.find(begin)) != std::string::npos;) {
    dropped += std::stoull(text.substr(at + begin.size()));
    text.erase(at, text.find(end, at) + end.size() - at);
  }
  return dropped;
}

// Nobody reads until all is put: put() returns all the same, and the reader is told what was cut out.
TEST(SerialOutput, StuckReaderLosesTheOldestAndIsTold) {
  Pipe pipe;
  auto output = SerialOutput::to_fd(pipe.write.get());
  ASSERT_TRUE(output) << output.error().message();
  const size_t total = 3 * SerialOutput::kBufferBytes;
  for (size_t i = 0; i < total; ++i)
    (*output)->put(std::byte('.'));
  (*output)->put(std::byte('!'));

  std::string text;
  std::array<char, 4096> buffer;
  while (text.empty() || text.back() != '!') {
    const ssize_t got = ::read(pipe.read.get(), buffer.data(), buffer.size());
    ASSERT_GT(got, 0);
    text.append(buffer.data(), static_cast<size_t>(got));
  }

  const uint64_t dropped = (*output)->dropped_bytes();
  EXPECT_GT(dropped, 0u);
  EXPECT_EQ(take_notes(text), dropped);
  EXPECT_EQ(text.size(), total + 1 - dropped);
}

TEST(SerialOutput, ReaderThatIsGoneIsAnErrorAndNoSignal) {
  Pipe pipe;
  auto output = SerialOutput::to_fd(pipe.write.get());
  ASSERT_TRUE(output) << output.error().message();
  pipe.read.reset();
  put(**output, "lost");
  // The destructor waits for the writer; the process lives, which is the point.
  output->reset();
}

TEST(SerialOutput, CallersDescriptorStaysBlocking) {
  Pipe pipe;
  auto output = SerialOutput::to_fd(pipe.write.get());
  ASSERT_TRUE(output) << output.error().message();
  EXPECT_EQ(::fcntl(pipe.write.get(), F_GETFL) & O_NONBLOCK, 0);
}

TEST(SerialOutput, FileThatCannotBeOpenedIsNamed) {
  const auto output = SerialOutput::to_file("/");
  ASSERT_FALSE(output);
  EXPECT_EQ(output.error().message(), "serial output: /: Is a directory");
}

TEST(SerialOutput, FileKeepsWhatItHasUntilItIsEmptied) {
  const std::string path = ::testing::TempDir() + "serial-output-" + std::to_string(::getpid());
  std::ofstream(path) << "of the last guest";
  const auto size = [&path] { return std::filesystem::file_size(path); };
  auto output = SerialOutput::to_file(path);
  ASSERT_TRUE(output) << output.error().message();
  EXPECT_EQ(size(), 17U);
  (*output)->empty_file();
  EXPECT_EQ(size(), 0U);
  put(**output, "new");
  (*output)->empty_file(); // once
  output->reset();         // written
  EXPECT_EQ(size(), 3U);
  std::filesystem::remove(path);
}

TEST(SerialOutput, TheFirstByteEmptiesTheFile) {
  const std::string path = ::testing::TempDir() + "serial-output-" + std::to_string(::getpid());
  std::ofstream(path) << "of the last guest";
  auto output = SerialOutput::to_file(path);
  ASSERT_TRUE(output) << output.error().message();
  put(**output, "new");
  output->reset();
  EXPECT_EQ(std::filesystem::file_size(path), 3U);
  std::filesystem::remove(path);
}

TEST(SerialOutput, OnlyRegularFilesAreEmptied) {
  auto output = SerialOutput::to_file("/dev/null");
  ASSERT_TRUE(output) << output.error().message();
  (*output)->empty_file();
  EXPECT_FALSE((*output)->failure());
}

std::string fed(ConsoleEscape& escape, std::string_view keys, bool& quit) {
  std::vector<std::byte> to;
  quit = escape.feed(std::as_bytes(std::span(keys)), to);
  return {reinterpret_cast<const char*>(to.data()), to.size()};
}

TEST(ConsoleEscape, OnlyTheEscapeKeyIsSpecial) {
  ConsoleEscape escape;
  bool quit = false;
  EXPECT_EQ(fed(escape, "ax\x03", quit), "ax\x03");
  EXPECT_EQ(fed(escape, "\x01\x01z", quit), "\x01z");
  EXPECT_EQ(fed(escape, "b\x01?c", quit), "bc");
  EXPECT_FALSE(quit);
  EXPECT_EQ(fed(escape, "d\x01", quit), "d"); // over two reads
  EXPECT_FALSE(quit);
  EXPECT_EQ(fed(escape, "xe", quit), "");
  EXPECT_TRUE(quit);
}

// A guest that reads its port as fast as interrupts tell: what comes out is what went in.
TEST(ConsoleInput, PipeReachesTheGuestWhole) {
  Pipe pipe;
  Pipe interrupts; // one byte for each rising edge
  Serial16550 port(nullptr, [&](bool level) {
    if (level && ::write(interrupts.write.get(), "!", 1) != 1)
      ADD_FAILURE() << "pipe full";
  });
  const std::array<std::byte, 1> enable{std::byte{0x01}};
  port.write(2, enable);
  port.write(1, enable);
  std::string sent;
  for (int i = 0; i < 500; ++i)
    sent += std::to_string(i) + "\x01x"; // no escape in a pipe
  auto input = ConsoleInput::start(pipe.read.get(), port, [] { FAIL() << "quit"; });
  ASSERT_TRUE(input) << input.error().message();

  ASSERT_EQ(::write(pipe.write.get(), sent.data(), sent.size()), static_cast<ssize_t>(sent.size()));
  std::string received;
  while (received.size() < sent.size()) {
    char edge = 0;
    ASSERT_EQ(::read(interrupts.read.get(), &edge, 1), 1);
    for (;;) {
      std::byte status{}, data{};
      port.read(5, std::span(&status, 1));
      if ((status & std::byte{1}) == std::byte{})
        break;
      port.read(0, std::span(&data, 1));
      received.push_back(static_cast<char>(data));
    }
  }
  EXPECT_EQ(received, sent);
}

TEST(ConsoleInput, ClosedInputIsNoError) {
  Serial16550 port(nullptr, {});
  EXPECT_TRUE(ConsoleInput::start(-1, port, [] {}));
  Pipe pipe;
  pipe.write.reset(); // ends at once
  EXPECT_TRUE(ConsoleInput::start(pipe.read.get(), port, [] {}));
}

struct Pty {
  Pty() {
    int controller = -1, terminal = -1;
    EXPECT_EQ(::openpty(&controller, &terminal, nullptr, nullptr, nullptr), 0);
    master = UniqueFd(controller);
    slave = UniqueFd(terminal);
  }
  [[nodiscard]] bool is_raw() const {
    termios mode{};
    EXPECT_EQ(::tcgetattr(master.get(), &mode), 0);
    return (mode.c_lflag & (ICANON | ECHO | ISIG)) == 0;
  }
  UniqueFd master, slave;
};

TEST(ConsoleInput, EscapeKeyQuitsThoughTheGuestReadsNothing) {
  Pty pty;
  Serial16550 port(nullptr, {});
  const auto raw = RawTerminal::enter(pty.slave.get());
  ASSERT_TRUE(raw) << raw.error().message();
  std::promise<void> quit;
  auto input = ConsoleInput::start(pty.slave.get(), port, [&] { quit.set_value(); }, &*raw);
  ASSERT_TRUE(input) << input.error().message();
  const std::string keys = std::string(3000, 'k') + "\x01x";
  ASSERT_EQ(::write(pty.master.get(), keys.data(), keys.size()), static_cast<ssize_t>(keys.size()));
  quit.get_future().wait();
}

TEST(RawTerminal, IsRawWhileItLivesAndThenAsItWas) {
  Pty pty;
  EXPECT_FALSE(pty.is_raw());
  {
    const auto raw = RawTerminal::enter(pty.slave.get());
    ASSERT_TRUE(raw) << raw.error().message();
    EXPECT_TRUE(raw->active());
    EXPECT_TRUE(pty.is_raw());
    EXPECT_FALSE(RawTerminal::enter(pty.slave.get())); // one at a time
    EXPECT_TRUE(pty.is_raw());
  }
  EXPECT_FALSE(pty.is_raw());
}

TEST(RawTerminal, LeavesAloneWhatIsNoTerminal) {
  Pipe pipe;
  for (const int fd : {pipe.read.get(), -1}) {
    const auto raw = RawTerminal::enter(fd);
    ASSERT_TRUE(raw) << raw.error().message();
    EXPECT_FALSE(raw->active());
  }
}

// A child that goes when the test is killed.
pid_t fork_with_us() {
  const pid_t child = ::fork();
  if (child == 0)
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  return child;
}

// Each way for a process to end: a child takes the terminal, tells so, and ends that way.
struct Ending {
  const char* name;
  void (*end)();
  int signal; // that it dies of; 0: it exits with status 7
};
void PrintTo(const Ending& ending, std::ostream* out) {
  *out << ending.name;
}

void send_and_wait(int signal) {
  ::kill(::getpid(), signal);
  for (;;)
    ::pause();
}

class TerminalEnding : public ::testing::TestWithParam<Ending> {};

TEST_P(TerminalEnding, GivesTheTerminalBack) {
  Pty pty;
  Pipe ready;
  const pid_t child = fork_with_us();
  ASSERT_GE(child, 0);
  if (child == 0) {
    for (const int number : {SIGABRT, SIGSEGV, SIGINT, SIGTERM, SIGHUP, SIGQUIT})
      ::signal(number, SIG_DFL); // no sanitizer's handler
    const auto raw = RawTerminal::enter(pty.slave.get());
    if (!raw || !pty.is_raw() || ::write(ready.write.get(), "r", 1) != 1)
      ::_exit(1);
    GetParam().end();
    ::_exit(2);
  }
  ready.write.reset();
  EXPECT_EQ(read_to_end(ready.read.get()), "r");
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  const bool as_meant = GetParam().signal == 0 ? WIFEXITED(status) && WEXITSTATUS(status) == 7
                                               : WIFSIGNALED(status) && WTERMSIG(status) == GetParam().signal;
  EXPECT_TRUE(as_meant) << status;
  EXPECT_FALSE(pty.is_raw());
}

INSTANTIATE_TEST_SUITE_P(EveryWay, TerminalEnding,
                         ::testing::Values(Ending{"exit", [] { std::exit(7); }, 0},
                                           Ending{"abort", [] { std::abort(); }, SIGABRT},
                                           Ending{"fault", [] { ::raise(SIGSEGV); }, SIGSEGV},
                                           Ending{"interrupt", [] { send_and_wait(SIGINT); }, SIGINT},
                                           Ending{"terminate", [] { send_and_wait(SIGTERM); }, SIGTERM},
                                           Ending{"hangup", [] { send_and_wait(SIGHUP); }, SIGHUP},
                                           Ending{"quit", [] { send_and_wait(SIGQUIT); }, SIGQUIT}),
                         [](const auto& way) { return way.param.name; });

TEST(RawTerminal, IsGivenBackWhileStoppedAndTakenAgain) {
  Pty pty;
  Pipe ready;
  const pid_t child = fork_with_us();
  ASSERT_GE(child, 0);
  if (child == 0) {
    // A group of its own, with its parent in another one: only such a group can be stopped by SIGTSTP.
    if (::setpgid(0, 0) != 0)
      ::_exit(1);
    const auto raw = RawTerminal::enter(pty.slave.get());
    if (!raw || ::write(ready.write.get(), "r", 1) != 1)
      ::_exit(1);
    pollfd continued{raw->continued_fd(), POLLIN, 0};
    while (::poll(&continued, 1, -1) != 1) {
    }
    ::_exit(pty.is_raw() ? 7 : 1);
  }
  char byte = 0;
  ASSERT_EQ(::read(ready.read.get(), &byte, 1), 1);
  int status = 0;
  ::kill(child, SIGTSTP);
  ASSERT_EQ(::waitpid(child, &status, WUNTRACED), child);
  ASSERT_TRUE(WIFSTOPPED(status)) << status;
  EXPECT_FALSE(pty.is_raw());
  ::kill(child, SIGCONT);
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 7) << status;
}

TEST(RawTerminal, StaysRawWhereTheKernelDoesNotStopTheProcess) {
  Pty pty;
  const pid_t child = fork_with_us();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::setsid(); // alone in its session: an orphaned process group
    const auto raw = RawTerminal::enter(pty.slave.get());
    if (!raw)
      ::_exit(1);
    ::raise(SIGTSTP);
    ::_exit(pty.is_raw() ? 7 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 7) << status;
}

} // namespace
} // namespace stopvisor::vmm
