// SPDX-License-Identifier: Apache-2.0
#include "vmm/control/server.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <list>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>

#include "vmm/control/connection.h"
#include "vmm/urgent_thread.h"

namespace stopvisor::vmm {
namespace {

constexpr std::chrono::seconds kLastAnswers{1};        // for clients to read their last answer when the server ends
constexpr std::chrono::milliseconds kNextAttempt{100}; // accept() found none free: look again after this

struct Client {
  UniqueFd fd; // closed by its thread, under the mutex, when it ends
  std::thread thread;
  bool done = false;
};

Peer peer_of(int fd) {
  ucred credentials{.pid = 0, .uid = uid_t(-1), .gid = gid_t(-1)};
  socklen_t length = sizeof credentials;
  ::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &length); // left at nobody where it fails
  return {credentials.pid, credentials.uid};
}

} // namespace

struct ControlServer::Parts {
  Parts(UniqueFd listening_socket, ApiHandler& api) : listening(std::move(listening_socket)), handler(api) {}

  void accept_loop() noexcept;
  bool pause_after(int error);
  void admit(UniqueFd fd);
  void add_client(UniqueFd fd, Peer peer);
  void serve(std::list<Client>::iterator client, ConnectionId id, Peer peer) noexcept;
  void reap(std::unique_lock<std::mutex>& lock);

  UniqueFd listening;
  ApiHandler& handler;
  std::thread acceptor;
  ConnectionId last_id = 0; // the acceptor's alone

  std::mutex mutex;              // a leaf: nothing is called out to while it is held
  std::condition_variable ended; // a connection ended, or stopping was set
  bool stopping = false;         // under mutex
  std::list<Client> clients;     // under mutex
};

// Joins the threads that have ended. CONTEXT: `lock` is held, and given away for the joins.
void ControlServer::Parts::reap(std::unique_lock<std::mutex>& lock) {
  std::list<Client> over;
  for (auto client = clients.begin(); client != clients.end();) {
    const auto next = std::next(client);
    if (client->done)
      over.splice(over.end(), clients, client);
    client = next;
  }
  lock.unlock();
  for (Client& client : over)
    client.thread.join();
  lock.lock();
}

void ControlServer::Parts::serve(std::list<Client>::iterator client, ConnectionId id, Peer peer) noexcept {
  serve_connection(client->fd.get(), id, peer, handler);
  const std::lock_guard guard(mutex);
  client->fd.reset();
  client->done = true;
  ended.notify_all();
}

void ControlServer::Parts::add_client(UniqueFd fd, Peer peer) {
  const Error full{"control socket", "", "too many connections: " + std::to_string(kMaxConnections) + " are open",
                   Status::kBusy};
  std::unique_lock lock(mutex);
  reap(lock);
  if (stopping)
    return;
  if (clients.size() >= kMaxConnections)
    return turn_away(fd.get(), error_reply(full));
  const auto client = clients.emplace(clients.end());
  client->fd = std::move(fd);
  try {
    client->thread = std::thread([this, client, id = ++last_id, peer] {
      make_this_thread_urgent();
      serve(client, id, peer);
    });
  } catch (const std::system_error& error) {
    turn_away(client->fd.get(), error_reply({"control socket", "", error.what(), Status::kBusy}));
    clients.erase(client);
  }
}

void ControlServer::Parts::admit(UniqueFd fd) {
  const Peer peer = peer_of(fd.get());
  if (peer.uid == ::geteuid() || peer.uid == 0)
    return add_client(std::move(fd), peer);
  turn_away(fd.get(),
            error_reply({"control socket", "", "uid " + std::to_string(peer.uid) + " may not control this VM",
                         Status::kRefused},
                        403));
}

// Out of descriptors, memory, or worse: a VM whose socket falls silent for good could not even be ended by name.
// RETURNS: whether accepting goes on after accept() failed.
bool ControlServer::Parts::pause_after(int error) {
  if (error == EINTR || error == ECONNABORTED)
    return true;
  std::unique_lock lock(mutex);
  if (stopping)
    return false;
  reap(lock);
  ended.wait_for(lock, kNextAttempt); // sooner where a connection of ours ends
  return !stopping;
}

void ControlServer::Parts::accept_loop() noexcept {
  for (;;) {
    UniqueFd fd(::accept4(listening.get(), nullptr, nullptr, SOCK_CLOEXEC));
    const int error = errno;
    try {
      if (fd)
        admit(std::move(fd));
      else if (!pause_after(error))
        return;
    } catch (...) { // NOLINT(bugprone-empty-catch): out of memory; this connection is closed, the next may do
    }
  }
}

ControlServer::ControlServer(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}

ControlServer::~ControlServer() {
  stop();
}

std::expected<std::unique_ptr<ControlServer>, Error> ControlServer::start(UniqueFd listening, ApiHandler& handler) {
  auto parts = std::make_unique<Parts>(std::move(listening), handler);
  try {
    parts->acceptor = std::thread([raw = parts.get()] { raw->accept_loop(); });
  } catch (const std::system_error& error) {
    return std::unexpected(Error{"control socket", "", error.what(), Status::kFailed});
  }
  return std::unique_ptr<ControlServer>(new ControlServer(std::move(parts)));
}

void ControlServer::stop() noexcept {
  if (!parts_->acceptor.joinable())
    return;
  std::unique_lock lock(parts_->mutex);
  parts_->stopping = true;
  parts_->ended.notify_all();
  ::shutdown(parts_->listening.get(), SHUT_RDWR); // accept() fails from now on (unix(7))
  lock.unlock();
  parts_->acceptor.join();
  parts_->listening.reset();

  lock.lock();
  const auto hang_up = [this](int how) {
    for (const Client& client : parts_->clients)
      if (!client.done)
        ::shutdown(client.fd.get(), how);
  };
  const auto all_done = [this] {
    for (const Client& client : parts_->clients)
      if (!client.done)
        return false;
    return true;
  };
  hang_up(SHUT_RD); // idle connections end now, the others after their answer
  if (!parts_->ended.wait_for(lock, kLastAnswers, all_done))
    hang_up(SHUT_RDWR);
  parts_->ended.wait(lock, all_done);
  parts_->reap(lock);
}

} // namespace stopvisor::vmm
