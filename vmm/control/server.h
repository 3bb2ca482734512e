// SPDX-License-Identifier: Apache-2.0
// HTTP/1.1 on the VM's Unix socket: accepts, checks who calls, and hands each request to the ApiHandler.
//
// One thread serves one connection for as long as it lives, because a lease lives exactly as long as its
// connection does, and because a hand-over between threads would cost more than the request itself.
#pragma once

#include <cstddef>
#include <expected>
#include <memory>

#include "vmm/control/request.h"
#include "vmm/error.h"
#include "vmm/unique_fd.h"

namespace stopvisor::vmm {

inline constexpr size_t kMaxConnections = 128;

class ControlServer {
public:
  // Serves connections to `listening` (a listening Unix stream socket). `handler` must outlive the server.
  // CONTEXT: any thread. The threads it starts inherit the caller's signal mask.
  [[nodiscard]] static std::expected<std::unique_ptr<ControlServer>, Error> start(UniqueFd listening,
                                                                                  ApiHandler& handler);
  // stop(), then gone.
  ~ControlServer();
  ControlServer(const ControlServer&) = delete;
  ControlServer& operator=(const ControlServer&) = delete;

  // Takes no connection any more, lets requests that are being served end and be answered (the VM has ended,
  // so they do), then hangs up and joins every thread. A client that does not read its answer is cut off
  // after a second. CONTEXT: not a connection's thread; blocks. May be called twice.
  void stop() noexcept;

private:
  struct Parts;
  explicit ControlServer(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

} // namespace stopvisor::vmm
