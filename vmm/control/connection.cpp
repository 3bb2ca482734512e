// SPDX-License-Identifier: Apache-2.0
// httplib parses the head and writes the answer; everything around it is ours: the bytes (channel.h), the body
// (read before routing, exactly as long as announced) and the routing, which takes no regular expression.
#include "vmm/control/connection.h"

#include <sys/socket.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <optional>
#include <string>

#include "vmm/control/channel.h"

#include <httplib.h>

namespace stopvisor::vmm {
namespace {

Error protocol_error(std::string reason) {
  return Error{"control request", "", std::move(reason), Status::kUsage};
}

class ChannelStream final : public httplib::Stream {
public:
  ChannelStream(Channel& channel, int fd) : channel_(channel), fd_(fd) {}

  bool is_readable() const override { return true; }
  bool is_writable() const override { return true; }
  ssize_t read(char* to, size_t size) override { return ssize_t(channel_.read({to, size})); }
  ssize_t write(const char* from, size_t size) override {
    channel_.write({from, size});
    return ssize_t(size);
  }
  void get_remote_ip_and_port(std::string&, int&) const override {}
  void get_local_ip_and_port(std::string&, int&) const override {}
  socket_t socket() const override { return fd_; }

private:
  Channel& channel_;
  int fd_;
};

// The body's length, or why the request's framing is refused (with the HTTP status for it).
struct Framing {
  size_t length = 0;
  int http_status = 0; // 0: fine
  std::string reason;
};

Framing framing_of(const httplib::Request& request) {
  if (request.has_header("Transfer-Encoding"))
    return {0, 411, "the body must come with a Content-Length, not chunked"};
  const size_t count = request.get_header_value_count("Content-Length");
  if (count == 0)
    return {};
  const std::string text = request.get_header_value("Content-Length");
  size_t length = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), length);
  if (count > 1 || error == std::errc::invalid_argument || end != text.data() + text.size())
    return {0, 400, "Content-Length is not one number"};
  if (error == std::errc::result_out_of_range || length > kMaxBodyBytes)
    return {length, 413, "the body is larger than " + std::to_string(kMaxBodyBytes) + " bytes"};
  return {length, 0, {}};
}

bool asks_to_upgrade(const httplib::Request& request) {
  std::string options = request.get_header_value("Connection");
  std::ranges::transform(options, options.begin(), [](unsigned char c) { return char(std::tolower(c)); });
  return options.find("upgrade") != std::string::npos;
}

class Connection final : private httplib::Server {
public:
  Connection(int fd, ConnectionId id, Peer peer, ApiHandler& handler)
      : fd_(fd), channel_(fd), stream_(channel_, fd), id_(id), peer_(peer), handler_(handler) {
    keep_alive_timeout_sec_ = 86'400; // what the answer's Keep-Alive header announces
    keep_alive_max_count_ = 1'000'000;
    set_pre_routing_handler([this](const httplib::Request& request, httplib::Response& response) {
      route(request, response);
      return HandlerResponse::Handled;
    });
    set_expect_100_continue_handler([this](const httplib::Request&, httplib::Response& response) {
      if (framing_.http_status == 0)
        return 100;
      refuse_framing(response);
      return framing_.http_status;
    });
    set_error_handler(HandlerWithResponse([](const httplib::Request&, httplib::Response& response) {
      if (response.body.empty()) // httplib's own refusals come without one
        put(response, error_reply(protocol_error("not a request this server understands"), response.status));
      return HandlerResponse::Handled;
    }));
  }

  void serve() {
    for (;;) {
      switch (channel_.wait_for_head()) {
      case HeadWait::kComplete:
        if (!serve_one())
          return;
        continue;
      case HeadWait::kClosed:
        return;
      case HeadWait::kTooSlow:
        return refuse_head(408, "the request did not arrive in time");
      case HeadWait::kTooLarge:
        return refuse_head(431, "the request's head is larger than " + std::to_string(kMaxHeadBytes) + " bytes");
      case HeadWait::kMalformed:
        return refuse_head(400, "not an HTTP/1.1 request");
      }
    }
  }

private:
  // RETURNS: whether the connection goes on.
  bool serve_one() {
    framing_ = {};
    undo_ = nullptr;
    take_over_ = nullptr;
    gone_ = false;
    routed_ = false;
    bool closes = false;
    const bool written = process_request(stream_, false, closes, [this](httplib::Request& request) {
      framing_ = framing_of(request);
      request.ranges.clear();                   // answers are never cut
      request.headers.erase("Accept-Encoding"); // nor compressed: it would cost more than it saves
      if (framing_.http_status != 0)
        request.headers.emplace("Connection", "close");
    });
    if (gone_)
      return false;
    if (take_over_)
      return switch_protocols();
    if (!channel_.flush()) {
      if (undo_)
        undo_();
      return false;
    }
    if (framing_.http_status != 0) {
      channel_.discard(std::max(framing_.length, kMaxBodyBytes));
      return false;
    }
    return written && !closes && routed_; // a head that httplib refused may not have been taken in whole
  }

  void route(const httplib::Request& request, httplib::Response& response) {
    routed_ = true;
    if (framing_.http_status != 0)
      return refuse_framing(response);
    std::string body;
    if (!channel_.flush() ||
        !channel_.read_all(body, framing_.length)) { // flush: a "100 Continue" the peer waits for
      gone_ = true;
      return;
    }
    ApiRequest ours{.method = request.method,
                    .path = request.path,
                    .query = {},
                    .body = body,
                    .upgrade = {},
                    .connection = id_,
                    .peer = peer_};
    for (const auto& [name, value] : request.params)
      ours.query.emplace_back(name, value);
    const std::string upgrade = asks_to_upgrade(request) ? request.get_header_value("Upgrade") : "";
    ours.upgrade = upgrade;
    try {
      ApiReply reply = handler_.serve(ours);
      undo_ = std::move(reply.undo);
      take_over_ = std::move(reply.take_over);
      upgrade_ = reply.upgrade;
      put(response, reply);
    } catch (const std::exception& error) {
      put(response,
          error_reply(Error{"control request", std::string(request.path), error.what(), Status::kFailed}));
    }
  }

  // RETURNS: false: the connection is over then.
  bool switch_protocols() {
    channel_.unwrite(); // httplib's answer, which has a length
    channel_.write("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + upgrade_ + "\r\n\r\n");
    const std::string early = channel_.take_rest();
    if (channel_.flush())
      take_over_(fd_, early);
    return false;
  }

  void refuse_framing(httplib::Response& response) {
    put(response, error_reply(protocol_error(framing_.reason), framing_.http_status));
  }

  void refuse_head(int http_status, const std::string& reason);

  static void put(httplib::Response& response, const ApiReply& reply) {
    response.status = reply.http_status;
    response.set_content(reply.body, reply.content_type);
  }

  const int fd_;
  Channel channel_;
  ChannelStream stream_;
  ConnectionId id_;
  Peer peer_;
  ApiHandler& handler_;
  // of the request being served
  Framing framing_;
  std::function<void()> undo_;
  std::function<void(int, std::string_view)> take_over_;
  std::string upgrade_;
  bool gone_ = false;
  bool routed_ = false;
};

std::string raw_answer(const ApiReply& reply) {
  return "HTTP/1.1 " + std::to_string(reply.http_status) +
         " Refused\r\nConnection: close\r\nContent-Type: " + reply.content_type +
         "\r\nContent-Length: " + std::to_string(reply.body.size()) + "\r\n\r\n" + reply.body;
}

void Connection::refuse_head(int http_status, const std::string& reason) {
  channel_.write(raw_answer(error_reply(protocol_error(reason), http_status)));
  if (channel_.flush())
    channel_.discard(kMaxBodyBytes);
}

} // namespace

void serve_connection(int fd, ConnectionId id, Peer peer, ApiHandler& handler) noexcept {
  try {
    Connection connection(fd, id, peer, handler);
    connection.serve();
  } catch (...) { // NOLINT(bugprone-empty-catch): out of memory; the connection's end is all there is to do
  }
  handler.connection_ended(id);
}

void turn_away(int fd, const ApiReply& reply) noexcept {
  try {
    const std::string answer = raw_answer(reply);
    // A fresh connection's buffer takes this; a peer that is gone does not matter.
    (void)::send(fd, answer.data(), answer.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  } catch (...) { // NOLINT(bugprone-empty-catch): out of memory; the peer sees the connection closed
  }
}

} // namespace stopvisor::vmm
