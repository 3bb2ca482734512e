// SPDX-License-Identifier: Apache-2.0
#include "tools/client/client.h"

#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <cstring>

#include <nlohmann/json.hpp>

#include "vmm/control/socket_place.h"

namespace stopvisor::tools {
namespace {

using vmm::Error;
using vmm::Status;

constexpr std::chrono::milliseconds kPatience{30'000};
constexpr size_t kMaxAnswerHeadBytes = 64 << 10;
constexpr size_t kMaxAnswerBytes = 64 << 20;
constexpr int kSwitchingProtocols = 101;
constexpr std::string_view kHeadEnd = "\r\n\r\n";

// "; running: vm1, vm2", or that none is.
std::string running_hint() {
  const auto running = vmm::running_vms();
  if (!running || running->empty())
    return "no VM is running";
  std::string names;
  for (const vmm::RunningVm& vm : *running)
    names += (names.empty() ? "" : ", ") + vm.name;
  return "running: " + names;
}

bool is_running(std::string_view name) {
  const auto running = vmm::running_vms();
  if (running)
    for (const vmm::RunningVm& vm : *running)
      if (vm.name == name)
        return true;
  return false;
}

std::optional<uint64_t> number_of(std::string_view text) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || end != text.data() + text.size())
    return std::nullopt;
  return number;
}

bool same_ignoring_case(std::string_view one, std::string_view other) {
  return std::ranges::equal(one, other,
                            [](unsigned char a, unsigned char b) { return std::tolower(a) == std::tolower(b); });
}

struct AnswerHead {
  int http_status = 0;
  uint64_t length = 0;
};

// `head` without its empty line.
std::optional<AnswerHead> parse_head(std::string_view head) {
  AnswerHead answer;
  const std::string_view first = head.substr(0, head.find("\r\n"));
  if (!first.starts_with("HTTP/1.1 ") || first.size() < 12)
    return std::nullopt;
  const auto status = number_of(first.substr(9, 3));
  if (!status)
    return std::nullopt;
  answer.http_status = int(*status);
  for (size_t at = head.find("\r\n"); at != std::string_view::npos; at = head.find("\r\n", at)) {
    at += 2;
    const std::string_view line = head.substr(at, head.find("\r\n", at) - at);
    const size_t colon = line.find(':');
    if (colon == std::string_view::npos || !same_ignoring_case(line.substr(0, colon), "Content-Length"))
      continue;
    std::string_view value = line.substr(colon + 1);
    value.remove_prefix(std::min(value.find_first_not_of(' '), value.size()));
    const auto length = number_of(value);
    if (!length || *length > kMaxAnswerBytes)
      return std::nullopt;
    answer.length = *length;
  }
  return answer;
}

} // namespace

std::expected<Client, Error> Client::connect(std::string_view operation, std::string_view name) {
  Client client;
  client.operation_ = operation;
  client.name_ = name;
  if (auto fine = vmm::check_vm_name(name); !fine)
    return std::unexpected(Error{client.operation_, "", fine.error().reason, Status::kUsage});
  const auto directory = vmm::SocketDirectory::open(false);
  if (!directory)
    return std::unexpected(Error{client.operation_, directory.error().object, directory.error().reason});
  client.path_ = directory->socket_path(name);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (client.path_.size() >= sizeof address.sun_path)
    return std::unexpected(client.failure("its socket's path is too long: " + client.path_, Status::kUsage));
  std::memcpy(address.sun_path, client.path_.c_str(), client.path_.size() + 1);
  client.fd_.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!client.fd_)
    return std::unexpected(vmm::system_error(operation, name, errno));
  client.set_patience(kPatience);
  if (::connect(client.fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0)
    return client;
  const int error = errno;
  if (error != ENOENT && error != ECONNREFUSED)
    return std::unexpected(
        vmm::system_error(operation, name, error, error == EAGAIN ? Status::kBusy : Status::kFailed));
  if (is_running(name)) // the name is claimed, but nobody listens (yet, or any more)
    return std::unexpected(client.failure("is starting or ending, try again", Status::kBusy));
  const std::string log = directory->log_path(name);
  const bool has_log = ::access(log.c_str(), F_OK) == 0;
  return std::unexpected(
      client.failure("no such VM; " + running_hint() + (has_log ? "; the last one's log: " + log : "")));
}

void Client::set_patience(std::chrono::milliseconds patience) {
  const timeval value{.tv_sec = patience.count() / 1000, .tv_usec = patience.count() % 1000 * 1000};
  ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &value, sizeof value); // cannot fail for these arguments
  ::setsockopt(fd_.get(), SOL_SOCKET, SO_SNDTIMEO, &value, sizeof value);
}

pid_t Client::vm_pid() const noexcept {
  ucred credentials{};
  socklen_t length = sizeof credentials;
  return ::getsockopt(fd_.get(), SOL_SOCKET, SO_PEERCRED, &credentials, &length) == 0 ? credentials.pid : 0;
}

Error Client::failure(std::string reason, Status status) const {
  return Error{operation_, name_, std::move(reason), status};
}

std::expected<void, Error> Client::send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR)
      continue;
    if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
      return std::unexpected(failure("does not read its requests", Status::kBusy));
    if (sent < 0)
      return {}; // it hung up; its answer, read next, may say why
    bytes.remove_prefix(size_t(sent));
  }
  return {};
}

std::expected<void, Error> Client::receive_more() {
  std::array<char, 16384> chunk; // NOLINT(cppcoreguidelines-pro-type-member-init): recv fills it
  for (;;) {
    const ssize_t got = ::recv(fd_.get(), chunk.data(), chunk.size(), 0);
    if (got > 0) {
      in_.append(chunk.data(), size_t(got));
      return {};
    }
    if (got < 0 && errno == EINTR)
      continue;
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
      return std::unexpected(failure("no answer in time", Status::kBusy));
    return std::unexpected(failure("the VM ended before it answered"));
  }
}

Error Client::decode_error(int http_status, std::string_view body) const {
  const auto document = nlohmann::json::parse(body, nullptr, false);
  const auto found = document.is_object() ? document.find("error") : document.end();
  if (!document.is_object() || found == document.end() || !found->is_object())
    return failure("HTTP status " + std::to_string(http_status) + " without a reason");
  const auto text = [&](const char* name) {
    const auto field = found->find(name);
    return field != found->end() && field->is_string() ? field->get<std::string>() : std::string();
  };
  const auto status = found->find("status");
  const int number = status != found->end() && status->is_number_integer() ? status->get<int>() : 1;
  std::string object = text("object");
  if (object.empty())
    object = name_;
  else if (object != name_ && !object.starts_with(name_ + ":"))
    object = name_ + ": " + object;
  return Error{operation_, object, text("reason"),
               number >= int(Status::kFailed) && number <= int(Status::kDrift) ? Status(number) : Status::kFailed};
}

std::expected<std::string, Error> Client::request(std::string_view method, std::string_view target,
                                                  std::string_view body) {
  std::string message;
  message.reserve(128 + body.size());
  message.append(method).append(" ").append(target).append(" HTTP/1.1\r\nHost: stopvisor\r\n");
  if (!body.empty() || method == "POST")
    message.append("Content-Length: ").append(std::to_string(body.size())).append("\r\n");
  message.append("\r\n").append(body);
  if (auto sent = send(message); !sent)
    return std::unexpected(sent.error());
  auto answer = receive_answer();
  if (!answer)
    return std::unexpected(answer.error());
  if (answer->http_status == 200)
    return std::move(answer->body);
  return std::unexpected(decode_error(answer->http_status, answer->body));
}

std::expected<Client::Answer, Error> Client::receive_answer() {
  size_t end = 0;
  while ((end = in_.find(kHeadEnd)) == std::string::npos) {
    if (in_.size() > kMaxAnswerHeadBytes)
      return std::unexpected(failure("not an HTTP answer"));
    if (auto more = receive_more(); !more)
      return std::unexpected(more.error());
  }
  const auto head = parse_head(std::string_view(in_).substr(0, end));
  if (!head)
    return std::unexpected(failure("not an HTTP answer"));
  if (head->http_status == kSwitchingProtocols) {
    Answer answer{head->http_status, in_.substr(end + kHeadEnd.size())};
    in_.clear();
    return answer;
  }
  const size_t total = end + kHeadEnd.size() + head->length;
  while (in_.size() < total)
    if (auto more = receive_more(); !more)
      return std::unexpected(more.error());
  Answer answer{head->http_status, in_.substr(end + kHeadEnd.size(), head->length)};
  in_.erase(0, total);
  return answer;
}

std::expected<std::string, Error> Client::upgrade(std::string_view target, std::string_view protocol) {
  std::string message = "GET ";
  message.append(target).append(" HTTP/1.1\r\nHost: stopvisor\r\nConnection: Upgrade\r\nUpgrade: ");
  message.append(protocol).append("\r\n\r\n");
  if (auto sent = send(message); !sent)
    return std::unexpected(sent.error());
  auto answer = receive_answer();
  if (!answer)
    return std::unexpected(answer.error());
  if (answer->http_status == kSwitchingProtocols)
    return std::move(answer->body);
  return std::unexpected(decode_error(answer->http_status, answer->body));
}

std::expected<void, Error> Client::pause(std::chrono::milliseconds timeout) {
  auto answer = request("POST", "/v1/pause", "{\"timeout_ms\":" + std::to_string(timeout.count()) + "}");
  if (!answer)
    return std::unexpected(answer.error());
  return {};
}

std::expected<void, Error> Client::resume() {
  auto answer = request("POST", "/v1/resume");
  if (!answer)
    return std::unexpected(answer.error());
  return {};
}

std::expected<uint64_t, Error> Client::lease(std::optional<std::chrono::milliseconds> max,
                                             std::chrono::milliseconds timeout) {
  nlohmann::json body{{"timeout_ms", timeout.count()}};
  if (max)
    body["max_ms"] = max->count();
  auto answer = request("POST", "/v1/lease", body.dump());
  if (!answer)
    return std::unexpected(answer.error());
  const auto document = nlohmann::json::parse(*answer, nullptr, false);
  if (!document.is_object() || !document.contains("id") || !document["id"].is_number_unsigned())
    return std::unexpected(failure("not the answer of a lease"));
  return document["id"].get<uint64_t>();
}

std::expected<void, Error> Client::end_lease(uint64_t id) {
  auto answer = request("DELETE", "/v1/lease/" + std::to_string(id));
  if (!answer)
    return std::unexpected(answer.error());
  return {};
}

} // namespace stopvisor::tools
