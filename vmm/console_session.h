// SPDX-License-Identifier: Apache-2.0
// One client at a VM's serial port: what the guest sends goes to a socket, what the client sends to the guest.
//
// Several may be there at once, besides the terminal of a VM in the foreground: each sees all of the guest's
// output, and their input is merged in the order in which the port takes it. A guest that does not read, or is
// held, costs a client its room for input and nothing else: what is over kBacklogBytes waits in the socket. What a
// client that has hung up sent before is given to the guest as far as the port takes it at once.
#pragma once

#include <cstddef>
#include <expected>
#include <memory>
#include <span>
#include <vector>

#include "vmm/console_ring.h"
#include "vmm/devices/serial16550.h"
#include "vmm/error.h"
#include "vmm/unique_fd.h"

namespace stopvisor::vmm {

class ConsoleSession {
public:
  static constexpr size_t kBacklogBytes = 4096;
  static constexpr size_t kChunkBytes = 4096;

  // RETURNS: kFailed where the host has no descriptor left. CONTEXT: `ring` and `port` must outlive it.
  [[nodiscard]] static std::expected<std::unique_ptr<ConsoleSession>, Error> start(ConsoleRing& ring,
                                                                                   Serial16550& port);
  ~ConsoleSession();
  ConsoleSession(const ConsoleSession&) = delete;
  ConsoleSession& operator=(const ConsoleSession&) = delete;

  // Serves the client at the stream socket `fd`, which sent `early` already, until it has hung up, or the ring was
  // closed and the client has taken what it held. A client that only ends its sending still gets output.
  // CONTEXT: blocks; the socket may be shut down meanwhile, which ends it.
  void serve(int fd, std::span<const std::byte> early);

private:
  explicit ConsoleSession(Serial16550& port) : port_(port) {}
  // RETURNS: false where the client is gone, or has everything.
  [[nodiscard]] bool fetch_output();
  [[nodiscard]] bool send_output(int fd);
  [[nodiscard]] bool receive_input(int fd);
  void deliver();

  Serial16550& port_;
  std::unique_ptr<ConsoleRing::Reader> reader_;
  UniqueFd room_; // eventfd: the port may have room again
  Serial16550::RoomListener room_listener_ = 0;

  std::vector<std::byte> out_; // read from the ring, from out_sent_ on not sent yet
  size_t out_sent_ = 0;
  bool output_ended_ = false;
  std::vector<std::byte> backlog_; // received, and not taken by the port yet
  bool input_ended_ = false;
};

} // namespace stopvisor::vmm
