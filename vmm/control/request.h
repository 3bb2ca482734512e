// SPDX-License-Identifier: Apache-2.0
// A request to the control API and its reply, free of HTTP's and JSON's libraries; and who answers.
//
// The server (server.h) moves bytes and knows nothing of VMs; the Api (api.h) knows the VM and nothing of
// sockets. A test puts its own handler behind the server.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "vmm/control/peer.h"
#include "vmm/error.h"

namespace stopvisor::vmm {

struct ApiRequest {
  std::string_view method;
  std::string_view path;
  std::vector<std::pair<std::string_view, std::string_view>> query;
  std::string_view body;
  std::string_view upgrade; // the protocol the client asks to go over to; empty: none
  ConnectionId connection = 0;
  Peer peer;
};

struct ApiReply {
  int http_status = 200;
  std::string content_type = "application/json";
  std::string body;
  // Takes back what was done, where the client was gone before it could be told. May be empty.
  std::function<void()> undo;
  // Where set, no answer is written but "101 Switching Protocols" to `upgrade`; then this is called with the
  // connection's descriptor and what the client sent after its request, and the connection ends as it returns.
  std::function<void(int fd, std::string_view early)> take_over;
  std::string upgrade;
};

// The error document of `error`, with the HTTP status that belongs to its exit status.
[[nodiscard]] ApiReply error_reply(const Error& error);
[[nodiscard]] ApiReply error_reply(const Error& error, int http_status);

// CONTEXT: called from connection threads, several at once.
class ApiHandler {
public:
  virtual ~ApiHandler() = default;
  [[nodiscard]] virtual ApiReply serve(const ApiRequest& request) = 0;
  // The connection is closed; nothing of it is served any more.
  virtual void connection_ended(ConnectionId connection) noexcept = 0;
};

} // namespace stopvisor::vmm
