// SPDX-License-Identifier: Apache-2.0
// One control connection, from its first request to its end.
#pragma once

#include "vmm/control/request.h"

namespace stopvisor::vmm {

// Serves requests on the stream socket `fd` until the peer hangs up or breaks the rules of HTTP.
// CONTEXT: the connection's own thread; blocks. Nothing is thrown.
void serve_connection(int fd, ConnectionId id, Peer peer, ApiHandler& handler) noexcept;

// Writes `reply` as an HTTP answer that ends the connection, without waiting for the peer to read it.
void turn_away(int fd, const ApiReply& reply) noexcept;

} // namespace stopvisor::vmm
