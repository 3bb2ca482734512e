// SPDX-License-Identifier: Apache-2.0
// The bytes of one control connection: buffered both ways, and bounded in time and size.
//
// A request's whole head is in the buffer before anybody parses it, so that a client that sends it slowly, or
// never ends it, costs one thread and 16 KiB for ten seconds and no more. A reply is one write.
#pragma once

#include <chrono>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace stopvisor::vmm {

inline constexpr size_t kMaxHeadBytes = 16 << 10;
// The largest request is a poke of 1 MiB with as much expected: 4 MiB of digits, and 4096 addresses around them.
inline constexpr size_t kMaxBodyBytes = 5 << 20;

// What waiting for a request ended with.
enum class HeadWait {
  kComplete,  // a head, up to its empty line, is buffered
  kClosed,    // the peer hung up, or the server ends
  kTooSlow,   // the head had begun and did not end in time
  kTooLarge,  // no end within kMaxHeadBytes
  kMalformed, // lines end without CR
};

class Channel {
public:
  using Clock = std::chrono::steady_clock;

  // Sets the time-outs of `fd`, a connected stream socket that must outlive the channel.
  explicit Channel(int fd);

  // Blocks until the next request's head is there. A connection may be idle for ever: its client may hold
  // a lease, and a client that dies hangs up.
  HeadWait wait_for_head();
  // The buffered head, without its empty line. Valid until the next read.
  [[nodiscard]] std::string_view head() const noexcept;

  // Takes what is buffered, else reads; 0 at the end of the stream, on an error or when the peer is too slow.
  size_t read(std::span<char> to);
  // Appends `bytes` to `to`, which grows as they arrive: announcing many costs a peer's memory, not ours.
  // RETURNS: false where the stream ended or the peer was too slow.
  [[nodiscard]] bool read_all(std::string& to, size_t bytes);
  // Reads and forgets up to `bytes`, for at most two seconds: so that a client still writing reads our answer.
  void discard(size_t bytes);

  // Takes what is buffered and was not read.
  [[nodiscard]] std::string take_rest();

  // Forgets what was written and not sent.
  void unwrite() noexcept { out_.clear(); }
  void write(std::string_view bytes) { out_.append(bytes); }
  // Sends what was written. RETURNS: false where the peer is gone or does not read.
  [[nodiscard]] bool flush();

private:
  enum class Received { kBytes, kEnd, kTimeout };
  Received receive();

  int fd_;
  std::string in_;
  size_t taken_ = 0; // bytes of in_ already read
  size_t head_end_ = 0;
  std::string out_;
};

} // namespace stopvisor::vmm
