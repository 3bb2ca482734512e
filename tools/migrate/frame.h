// SPDX-License-Identifier: Apache-2.0
// A message on a link: a header of fixed size, a payload, and a checksum over both.
//
// docs/reference/migration-protocol.md has the bytes. The receiver takes the stream as hostile: a length is bounded
// by its kind before a byte of it is read, and nothing of a payload is used before its checksum was found good.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tools/migrate/link.h"
#include "vmm/error.h"

namespace stopvisor::migrate {

enum class FrameKind : uint16_t { // for ever
  kHello = 1,                     // the caller: who, which versions, which migration, which link of it
  kWelcome = 2,                   // the answer: version and features
  kRefusal = 3,                   // either: an error, and the end of this link
  kMachine = 4,                   // source: what the destination must be like
  kAccepted = 5,                  // destination: it is; memory may come
  kPages = 6,                     // source, any link: a batch of pages
  kRoundEnd = 7,                  // source, each link: nothing of this round comes after it here
  kRoundDone = 8,                 // destination: all links came to the end of this round, everything is in place
  kState = 9,  // source: kPrepare of the hand-over, with the machine's state and a digest of all that was sent
  kWord = 10,  // either: another word of the hand-over
  kAlive = 11, // either: nothing; said where there was nothing else to say for a second
};

inline constexpr size_t kFrameHeaderBytes = 32;
inline constexpr size_t kMaxPagesPayload = 4 << 20;
inline constexpr size_t kMaxStatePayload = 64 << 20;
inline constexpr size_t kMaxMachinePayload = 4 << 20;
inline constexpr size_t kMaxSmallPayload = 64 << 10; // of every other kind

inline constexpr uint16_t kFlagZstd = 1; // of kPages: the data part is compressed

// Of a kind that is none: 0, so that nothing can be read of it.
[[nodiscard]] size_t max_payload(FrameKind kind) noexcept;
// For people: "pages", "the state"; of a kind that is none, its number.
[[nodiscard]] std::string name_of(FrameKind kind);

struct Frame {
  FrameKind kind = FrameKind::kAlive;
  uint16_t flags = 0;
  std::vector<std::byte> payload;
};

// Both count what went through them, kAlive left out, and keep a digest of it: XXH3-64 of the digest before and the
// frame's own checksum, 8 bytes each. Two ends of a link that agree on both have exchanged the same.
struct FrameTally {
  uint64_t frames = 0;
  uint64_t bytes = 0; // headers included
  uint64_t digest = 0;
};

class FrameWriter {
public:
  explicit FrameWriter(Link& link) noexcept : link_(link) {}
  // `parts` is the payload, cut in pieces that need not be copied together. CONTEXT: one thread at a time. RETURNS:
  // Link::write()'s errors; kFailed for more than this kind may have.
  [[nodiscard]] std::expected<void, vmm::Error> write(FrameKind kind, std::span<const std::byte> payload,
                                                      uint16_t flags = 0);
  [[nodiscard]] std::expected<void, vmm::Error>
  write(FrameKind kind, std::span<const std::span<const std::byte>> parts, uint16_t flags = 0);
  // Of what was written. CONTEXT: as write().
  [[nodiscard]] const FrameTally& tally() const noexcept { return tally_; }

private:
  Link& link_;
  FrameTally tally_;
  uint64_t number_ = 0; // of the next frame, whatever its kind
  std::vector<iovec> pieces_;
};

class FrameReader {
public:
  explicit FrameReader(Link& link) noexcept : link_(link) {}
  // The next frame that is not kAlive, into `frame`, whose payload's room is used again. The first one of a link is
  // a kHello, kWelcome or kRefusal, and comes within patience of the link's first byte, whatever trickles. CONTEXT:
  // one thread at a time; blocks. RETURNS: Link::read()'s errors; kFailed where it is no frame of ours: "does not
  // speak our protocol", a kind, flag or length that cannot be, a checksum that is wrong (with the frame's number).
  // The same from then on.
  [[nodiscard]] std::expected<void, vmm::Error> read(Frame& frame);
  // What is read from now on has to be there by then, whatever trickles; nothing: patience is enough. CONTEXT: as
  // read().
  void expect_by(std::optional<Link::Clock::time_point> until) noexcept { expected_by_ = until; }
  [[nodiscard]] const FrameTally& tally() const noexcept { return tally_; } // of what was read

private:
  [[nodiscard]] std::expected<void, vmm::Error> read_one(Frame& frame);
  [[nodiscard]] std::expected<void, vmm::Error> read_payload(std::vector<std::byte>& payload, size_t length,
                                                             Link::Reading how);
  [[nodiscard]] std::unexpected<vmm::Error> wrong(const std::string& reason) const;

  Link& link_;
  FrameTally tally_;
  uint64_t number_ = 0;                             // of the next frame, whatever its kind
  bool knows_peer_ = false;                         // it has said hello, or answered ours
  std::optional<Link::Clock::time_point> known_by_; // or it is given up
  std::optional<Link::Clock::time_point> expected_by_;
  std::optional<vmm::Error> error_;
};

} // namespace stopvisor::migrate
