// SPDX-License-Identifier: Apache-2.0
// Carries a serial port's output to a terminal, pipe, socket or file without ever holding up a vCPU.
//
// A vCPU thread that blocked in write(2) on a stuck reader could not be stopped, so that bytes go into a
// buffer and a thread of our own writes them. Nothing is lost while the reader moves within kBufferBytes; a
// reader that is stuck for longer loses the oldest bytes, and finds a note with their number in their
// place. The thread touches no guest memory: it is no participant of a stop.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "vmm/error.h"
#include "vmm/unique_fd.h"

namespace stopvisor::vmm {

class ByteSink {
public:
  virtual ~ByteSink() = default;
  // CONTEXT: vCPU threads, several at once; must not block.
  virtual void put(std::byte byte) noexcept = 0;
};

// What stands in the place of bytes that a reader was too slow for.
[[nodiscard]] std::string note_of_dropped(uint64_t bytes);

// A descriptor of our own on what `fd` refers to, nonblocking where that is a terminal or a pipe, without making
// the caller's so. Empty, with errno set, for a bad one.
[[nodiscard]] UniqueFd own_output(int fd);

class SerialOutput final : public ByteSink {
public:
  static constexpr size_t kBufferBytes = 1 << 20;
  static constexpr std::chrono::seconds kDrainLimit{1};

  // Writes to the file at `path`, made where there is none; see empty_file(). RETURNS: kFailed where it cannot be
  // opened.
  [[nodiscard]] static std::expected<std::unique_ptr<SerialOutput>, Error> to_file(const std::string& path);
  // Writes to what `fd` refers to, through a descriptor of its own: the caller's is left as it is, in
  // blocking mode too. RETURNS: kFailed for a bad descriptor.
  [[nodiscard]] static std::expected<std::unique_ptr<SerialOutput>, Error> to_fd(int fd);

  // Writes out what is buffered, giving a stuck reader kDrainLimit, and joins the thread. CONTEXT: blocks.
  ~SerialOutput() override;
  SerialOutput(const SerialOutput&) = delete;
  SerialOutput& operator=(const SerialOutput&) = delete;

  // Cuts to nothing what to_file() has found, once, where that is a regular file, as O_TRUNC does: for who is sure
  // that a guest runs. The first byte does so as well. A failure is failure()'s. CONTEXT: any thread.
  void empty_file() noexcept;

  void put(std::byte byte) noexcept override;

  // Bytes that never reached the reader: it was stuck, or writing failed. CONTEXT: any thread.
  [[nodiscard]] uint64_t dropped_bytes() const noexcept;
  // The first error of writing, if there was one. CONTEXT: any thread.
  [[nodiscard]] std::optional<Error> failure() const;

private:
  using Clock = std::chrono::steady_clock;

  SerialOutput(UniqueFd target, UniqueFd wake);
  [[nodiscard]] static std::expected<std::unique_ptr<SerialOutput>, Error> start(UniqueFd target);
  void run() noexcept;
  [[nodiscard]] size_t take(std::span<std::byte> chunk);
  [[nodiscard]] bool write_all(std::span<const std::byte> bytes);
  [[nodiscard]] bool wait_writable();
  [[nodiscard]] ssize_t write_some(std::span<const std::byte> bytes) const;
  void note_failure(int error_number, size_t lost_bytes);

  const UniqueFd target_;
  const UniqueFd wake_; // eventfd: ends a wait for the reader
  bool is_socket_ = false;

  mutable std::mutex lock_; // a leaf: nothing is called while it is held
  std::condition_variable filled_;
  std::vector<std::byte> ring_; // guarded by lock_, as all below
  size_t head_ = 0;             // the oldest byte
  size_t count_ = 0;
  bool to_be_emptied_ = false; // a file, which has what it had
  uint64_t dropped_ = 0;
  uint64_t dropped_unnoted_ = 0;         // cut out before head_, and not told yet
  int failure_ = 0;                      // errno
  std::optional<Clock::time_point> end_; // set once the object goes: when to give up

  std::thread thread_; // last: runs while all the above exists
};

} // namespace stopvisor::vmm
