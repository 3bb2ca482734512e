// SPDX-License-Identifier: Apache-2.0
#include "tools/migrate/address.h"

#include <arpa/inet.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

namespace stopvisor::migrate {
namespace {

constexpr size_t kMostPath = sizeof(sockaddr_un::sun_path) - 1;
constexpr size_t kMostHost = 253;         // RFC 1035, 3.1, as text
constexpr size_t kMostCommand = 32 << 10; // far below what a process may be started with
constexpr size_t kShown = 200;            // of an address that is wrong

using Reason = std::optional<std::string>; // what is wrong

bool is_host_character(char c) {
  return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '-' ||
         c == '_';
}

template <typename Number>
bool parse_decimal(std::string_view digits, Number& number) {
  const auto [end, fault] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  return !digits.empty() && digits.front() != '-' && fault == std::errc{} && end == digits.data() + digits.size();
}

Reason parse_unix(std::string_view rest, Address& address) {
  if (rest.empty())
    return "names no path";
  if (rest.size() > kMostPath)
    return "is too long for a socket: its path has " + std::to_string(rest.size()) + " bytes, at most " +
           std::to_string(kMostPath) + " are possible";
  address.path = rest;
  return {};
}

Reason parse_port(std::string_view digits, Side side, Address& address) {
  if (digits.empty())
    return "names no port";
  if (digits.size() > 5 || !parse_decimal(digits, address.port))
    return "has no port behind its last colon: one is a number from 0 to 65535";
  if (address.port == 0 && side == Side::kSource)
    return "has port 0, which only a destination can take: for any free one";
  return {};
}

Reason check_v6(std::string_view host) {
  const size_t zone = host.find('%');
  const std::string digits(host.substr(0, zone));
  in6_addr ignored{};
  if (::inet_pton(AF_INET6, digits.c_str(), &ignored) != 1)
    return "has no IPv6 address in its brackets";
  if (zone != std::string_view::npos &&
      (zone + 1 == host.size() || !std::ranges::all_of(host.substr(zone + 1), is_host_character)))
    return "has no interface behind the % of its IPv6 address";
  return {};
}

Reason parse_tcp(std::string_view rest, Side side, Address& address) {
  if (!rest.starts_with("//"))
    return "is written tcp://HOST:PORT";
  rest.remove_prefix(2);
  std::string_view port;
  if (rest.starts_with('[')) {
    const size_t end = rest.find(']');
    if (end == std::string_view::npos)
      return "has a bracket that is not closed";
    address.host = rest.substr(1, end - 1);
    if (Reason wrong = check_v6(address.host))
      return wrong;
    if (end + 1 == rest.size() || rest[end + 1] != ':')
      return "names no port behind its brackets";
    port = rest.substr(end + 2);
  } else {
    const size_t colon = rest.find(':');
    address.host = rest.substr(0, colon);
    if (colon == std::string_view::npos)
      return "names no port";
    port = rest.substr(colon + 1);
    if (port.find(':') != std::string_view::npos)
      return "has more than one colon: an IPv6 address is written in brackets, tcp://[::1]:PORT";
    if (address.host.empty())
      return "names no host";
    if (address.host.size() > kMostHost || address.host.front() == '-' ||
        !std::ranges::all_of(address.host, is_host_character))
      return "has a host that cannot be one";
  }
  return parse_port(port, side, address);
}

Reason parse_exec(std::string_view rest, Side side, Address& address) {
  if (side == Side::kDestination)
    return "is for a source alone; a destination that a command leads to takes stdio:";
  if (rest.find_first_not_of(" \t\n") == std::string_view::npos)
    return "names no command";
  if (rest.size() > kMostCommand)
    return "has a command that is too long";
  address.command = rest;
  return {};
}

Reason parse_fd(std::string_view rest, Address& address) {
  if (!parse_decimal(rest, address.fd))
    return "names no descriptor: fd: is followed by its number";
  if (address.fd <= 2)
    return "is stdin, stdout or stderr; a destination takes the first two as stdio:";
  return {};
}

Reason parse_stdio(std::string_view rest, Side side) {
  if (side == Side::kSource)
    return "is for a destination alone; a source starts one with exec:COMMAND";
  if (!rest.empty())
    return "has something behind stdio:";
  return {};
}

Reason parse_into(std::string_view text, Side side, Address& address) {
  if (text.find('\0') != std::string_view::npos)
    return "has a NUL in it";
  const size_t colon = text.find(':');
  const std::string_view scheme = text.substr(0, colon);
  const std::string_view rest = colon == std::string_view::npos ? std::string_view() : text.substr(colon + 1);
  constexpr std::array<std::pair<std::string_view, AddressKind>, 5> kSchemes{{{"unix", AddressKind::kUnix},
                                                                              {"tcp", AddressKind::kTcp},
                                                                              {"exec", AddressKind::kExec},
                                                                              {"fd", AddressKind::kFd},
                                                                              {"stdio", AddressKind::kStdio}}};
  const auto* const found = std::ranges::find(kSchemes, scheme, &std::pair<std::string_view, AddressKind>::first);
  if (colon == std::string_view::npos || found == kSchemes.end())
    return std::string("is no address: one is unix:PATH, tcp://HOST:PORT, fd:N or ") +
           (side == Side::kSource ? "exec:COMMAND" : "stdio:");
  address.kind = found->second;
  switch (address.kind) {
  case AddressKind::kUnix:
    return parse_unix(rest, address);
  case AddressKind::kTcp:
    return parse_tcp(rest, side, address);
  case AddressKind::kExec:
    return parse_exec(rest, side, address);
  case AddressKind::kFd:
    return parse_fd(rest, address);
  case AddressKind::kStdio:
    return parse_stdio(rest, side);
  }
  return "is no address";
}

} // namespace

std::expected<Address, vmm::Error> parse_address(std::string_view operation, std::string_view text, Side side) {
  Address address;
  address.text = text;
  if (Reason wrong = parse_into(text, side, address))
    return std::unexpected(vmm::Error{std::string(operation), std::string(text.substr(0, kShown)),
                                      std::move(*wrong), vmm::Status::kUsage});
  return address;
}

std::expected<Address, vmm::Error> parse_address_here(std::string_view operation, std::string_view text,
                                                      Side side) {
  auto address = parse_address(operation, text, side);
  if (!address || address->kind != AddressKind::kUnix)
    return address;
  std::error_code error;
  const auto path = std::filesystem::absolute(address->path, error);
  if (error)
    return std::unexpected(
        vmm::Error{std::string(operation), address->text, error.message(), vmm::Status::kFailed});
  return parse_address(operation, "unix:" + path.lexically_normal().string(), side); // it may be too long now
}

} // namespace stopvisor::migrate
