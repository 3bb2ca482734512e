// SPDX-License-Identifier: Apache-2.0
// Reads the user's keys (or a pipe) into a serial port, on a thread of its own.
//
// On a terminal, Ctrl-A begins a command: Ctrl-A x ends the VM, Ctrl-A Ctrl-A sends one Ctrl-A to the guest,
// any other key after it is dropped. From a pipe or file every byte goes to the guest as it is.
// A guest that does not read never holds up the escape key: keys beyond kBacklogBytes are dropped, as a
// terminal does; a pipe waits instead.
#pragma once

#include <cstddef>
#include <expected>
#include <functional>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "vmm/devices/serial16550.h"
#include "vmm/error.h"
#include "vmm/terminal.h"
#include "vmm/unique_fd.h"

namespace stopvisor::vmm {

// Finds the commands in a stream of keys.
class ConsoleEscape {
public:
  static constexpr std::byte kEscape{0x01}; // Ctrl-A

  // Appends to `to` what goes to the guest. RETURNS: whether the user asked to quit; the rest is dropped then.
  [[nodiscard]] bool feed(std::span<const std::byte> keys, std::vector<std::byte>& to);

private:
  bool after_escape_ = false;
};

class ConsoleInput {
public:
  static constexpr size_t kBacklogBytes = 4096;

  // Reads `fd` until it ends. `on_quit` is called on the input thread, once at most. `terminal`, where there
  // is one, tells when the process is back in the foreground. A closed `fd` is no input and no error.
  // CONTEXT: `port` and `terminal` must outlive the object. RETURNS: kFailed where the host refuses a thread.
  [[nodiscard]] static std::expected<std::unique_ptr<ConsoleInput>, Error>
  start(int fd, Serial16550& port, std::function<void()> on_quit, const RawTerminal* terminal = nullptr);

  // Ends the thread and joins it. CONTEXT: any thread but the input thread.
  ~ConsoleInput();
  ConsoleInput(const ConsoleInput&) = delete;
  ConsoleInput& operator=(const ConsoleInput&) = delete;

private:
  enum class Source { kOpen, kBackground, kEnded };
  enum class Step { kGoOn, kStop };

  ConsoleInput(UniqueFd source, Serial16550& port, std::function<void()> on_quit);
  void run(int continued_fd) noexcept;
  [[nodiscard]] Step wait(int continued_fd);
  [[nodiscard]] Step read_keys();
  [[nodiscard]] bool wants_keys() const;
  void deliver();

  const UniqueFd source_fd_;
  const bool is_terminal_;
  Serial16550& port_;
  const std::function<void()> on_quit_;
  UniqueFd stop_; // eventfd
  UniqueFd room_; // eventfd: the port has room again
  Serial16550::RoomListener room_listener_ = 0;

  // The input thread's own:
  Source source_ = Source::kOpen;
  ConsoleEscape escape_;
  std::vector<std::byte> backlog_; // read, and not yet taken by the port
  bool port_full_ = false;

  std::thread thread_;
};

} // namespace stopvisor::vmm
