// SPDX-License-Identifier: Apache-2.0
#include "tools/stopvisor/detach.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>

#include <nlohmann/json.hpp>

namespace stopvisor::tools {
namespace {

using Json = nlohmann::json;
using vmm::Error;
using vmm::Status;

void write_all(int fd, const std::string& text) {
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t written = ::write(fd, text.data() + done, text.size() - done);
    if (written < 0 && errno == EINTR)
      continue;
    if (written <= 0)
      return; // the foreground is gone: nobody waits
    done += size_t(written);
  }
}

std::string read_all(int fd) {
  std::string text;
  std::array<char, 4096> chunk; // NOLINT(cppcoreguidelines-pro-type-member-init): read fills it
  for (;;) {
    const ssize_t got = ::read(fd, chunk.data(), chunk.size());
    if (got < 0 && errno == EINTR)
      continue;
    if (got <= 0)
      return text;
    text.append(chunk.data(), size_t(got));
  }
}

void redirect(int fd, const char* path, int flags) {
  const vmm::UniqueFd file(::open(path, flags | O_CLOEXEC));
  if (file)
    ::dup2(file.get(), fd);
}

[[noreturn]] void run_in_background(vmm::UniqueFd pipe, const std::function<int(Foreground&)>& background) {
  ::setsid();
  redirect(STDIN_FILENO, "/dev/null", O_RDONLY);
  redirect(STDOUT_FILENO, "/dev/null", O_WRONLY);
  ::signal(SIGPIPE, SIG_IGN); // the foreground may be gone when it is told
  Foreground foreground(std::move(pipe));
  std::exit(background(foreground)); // NOLINT(concurrency-mt-unsafe): its threads have ended
}

Error without_a_word(pid_t pid) {
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return {"run", "",
          "the background process ended before its VM ran (" +
              (WIFSIGNALED(status) ? "signal " + std::to_string(WTERMSIG(status))
                                   : "status " + std::to_string(WEXITSTATUS(status))) +
              ")",
          Status::kFailed};
}

} // namespace

void Foreground::tell_ready(const std::string& word) {
  write_all(pipe_.get(), Json{{"ready", word}}.dump());
  pipe_.reset();
}

void Foreground::tell_error(const Error& error) {
  if (told())
    return;
  const Json document = {{"operation", error.operation},
                         {"object", error.object},
                         {"reason", error.reason},
                         {"status", int(error.status)}};
  write_all(pipe_.get(), document.dump(-1, ' ', false, Json::error_handler_t::replace));
  pipe_.reset();
}

std::expected<Detached, Error> detach(const std::function<int(Foreground&)>& background) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0)
    return std::unexpected(vmm::system_error("run", "--detach", errno));
  vmm::UniqueFd reading(ends[0]);
  vmm::UniqueFd writing(ends[1]);
  std::fflush(nullptr); // what is buffered must not be written twice
  const pid_t pid = ::fork();
  if (pid < 0)
    return std::unexpected(vmm::system_error("run", "--detach", errno));
  if (pid == 0) {
    reading.reset();
    run_in_background(std::move(writing), background);
  }
  writing.reset();
  const Json told = Json::parse(read_all(reading.get()), nullptr, false);
  if (!told.is_object())
    return std::unexpected(without_a_word(pid));
  if (told.contains("ready"))
    return Detached{pid, told["ready"].get<std::string>()};
  while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) { // so that it has let go of everything
  }
  return std::unexpected(
      Error{told.at("operation"), told.at("object"), told.at("reason"), Status(told.at("status").get<int>())});
}

bool log_to(const std::string& path) {
  ::unlink(path.c_str());
  const vmm::UniqueFd file(
      ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, S_IRUSR | S_IWUSR));
  return file && ::dup2(file.get(), STDERR_FILENO) == STDERR_FILENO;
}

} // namespace stopvisor::tools
