// SPDX-License-Identifier: Apache-2.0
// A connection to a running VM's control socket: what the command's verbs and the benchmark speak through.
//
// HTTP is spoken by hand here, one write and mostly one read a request, because the round trip of pause and
// resume is measured through this very code.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <expected>
#include <optional>
#include <string>
#include <string_view>

#include "vmm/error.h"
#include "vmm/unique_fd.h"

namespace stopvisor::tools {

class Client {
public:
  // Connects to the VM `name`. `operation` is the verb that errors are reported under.
  // RETURNS: kUsage for a bad name, kFailed where no VM of that name runs (naming those that do) or its socket
  // cannot be used.
  [[nodiscard]] static std::expected<Client, vmm::Error> connect(std::string_view operation, std::string_view name);
  Client(Client&&) noexcept = default;
  Client& operator=(Client&&) noexcept = default;

  // Sends one request and waits for its answer. RETURNS: the answer's body; the VM's own error, its object
  // beginning with the VM's name; kFailed where the connection is lost, kBusy where no answer comes in time.
  // After an error of the connection the object is of no more use. CONTEXT: one thread at a time; blocks.
  [[nodiscard]] std::expected<std::string, vmm::Error> request(std::string_view method, std::string_view target,
                                                               std::string_view body = {});

  // Makes the connection one of `protocol` ("101 Switching Protocols"): what fd() carries from then on is the
  // caller's. RETURNS: what the VM has sent of it already; errors as request().
  [[nodiscard]] std::expected<std::string, vmm::Error> upgrade(std::string_view target, std::string_view protocol);

  [[nodiscard]] std::expected<void, vmm::Error> pause(std::chrono::milliseconds timeout);
  [[nodiscard]] std::expected<void, vmm::Error> resume();
  // A hold that ends with this connection, with end_lease(), or after `max`.
  [[nodiscard]] std::expected<uint64_t, vmm::Error> lease(std::optional<std::chrono::milliseconds> max,
                                                          std::chrono::milliseconds timeout);
  // RETURNS: kBusy where the lease's time was up before.
  [[nodiscard]] std::expected<void, vmm::Error> end_lease(uint64_t id);

  // The longest time between two pieces of an answer; 30 s unless set. Zero: for ever.
  void set_patience(std::chrono::milliseconds patience);

  [[nodiscard]] const std::string& vm_name() const noexcept { return name_; }
  [[nodiscard]] const std::string& socket_path() const noexcept { return path_; }
  // For poll(): readable outside of a request means that the VM hung up.
  [[nodiscard]] int fd() const noexcept { return fd_.get(); }
  // The VM's process, as it was when it began to listen; 0 where it cannot be seen from here.
  [[nodiscard]] pid_t vm_pid() const noexcept;

private:
  Client() = default;
  [[nodiscard]] vmm::Error failure(std::string reason, vmm::Status status = vmm::Status::kFailed) const;
  // One answer, taken out of in_. For "101" the body is what came after its head.
  struct Answer {
    int http_status = 0;
    std::string body;
  };
  [[nodiscard]] std::expected<Answer, vmm::Error> receive_answer();
  [[nodiscard]] std::expected<void, vmm::Error> send(std::string_view bytes);
  [[nodiscard]] std::expected<void, vmm::Error> receive_more();
  [[nodiscard]] vmm::Error decode_error(int http_status, std::string_view body) const;

  std::string operation_;
  std::string name_;
  std::string path_;
  vmm::UniqueFd fd_;
  std::string in_; // received, not yet used
};

} // namespace stopvisor::tools
