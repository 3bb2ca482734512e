// SPDX-License-Identifier: Apache-2.0
// A link's bytes, from whoever called: what is taken for messages is what would have been sent.
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>

#include "tests/fuzz/fuzzer.h"
#include "tools/migrate/checksum.h"
#include "tools/migrate/frame.h"

namespace stopvisor::fuzz {
namespace {

using namespace migrate;

constexpr unsigned kChecksumsAgree = 1; // else hardly anything would get past them
constexpr size_t kMostBytes = 64 << 10; // that a socket holds: nobody reads while they are written
constexpr size_t kKindAt = 4;
constexpr size_t kLengthAt = 16;
constexpr size_t kChecksumAt = 24;

struct Ends {
  Ends() {
    std::array<int, 2> fds{-1, -1};
    must(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()) == 0, "a socket pair");
    in = std::make_unique<Link>("fuzz", "in", vmm::UniqueFd(fds[0]));
    out = std::make_unique<Link>("fuzz", "out", vmm::UniqueFd(fds[1]));
  }
  std::unique_ptr<Link> in;
  std::unique_ptr<Link> out;
};

Bytes all_of(Link& link) {
  Bytes all;
  for (Bytes byte(1); link.read(byte);)
    all.push_back(byte.front());
  return all;
}

// What the frames look like when they are sent; none of them is a sign of life.
Bytes stream_of(const std::vector<Frame>& frames) {
  Ends ends;
  FrameWriter writer(*ends.out);
  for (const Frame& frame : frames)
    must(writer.write(frame.kind, frame.payload, frame.flags).has_value(), "a frame that cannot be sent");
  ends.out.reset();
  return all_of(*ends.in);
}

void agree(Bytes& stream) {
  for (size_t at = 0; stream.size() - at >= kFrameHeaderBytes;) {
    uint32_t length = 0;
    std::memcpy(&length, stream.data() + at + kLengthAt, sizeof length);
    const size_t whole = kFrameHeaderBytes + length;
    if (whole > stream.size() - at)
      return;
    std::memset(stream.data() + at + kChecksumAt, 0, sizeof(uint64_t));
    const uint64_t checksum = xxh3_of(std::span(stream).subspan(at, whole));
    std::memcpy(stream.data() + at + kChecksumAt, &checksum, sizeof checksum);
    at += whole;
  }
}

bool has_signs_of_life(const Bytes& stream) {
  for (size_t at = 0; at + kFrameHeaderBytes <= stream.size();) {
    uint32_t length = 0;
    std::memcpy(&length, stream.data() + at + kLengthAt, sizeof length);
    if (stream[at + kKindAt] == std::byte(FrameKind::kAlive))
      return true;
    at += kFrameHeaderBytes + length;
  }
  return false;
}

} // namespace

std::vector<Bytes> seeds() {
  const Bytes stream = stream_of({{FrameKind::kHello, 0, Bytes(5, std::byte(1))},
                                  {FrameKind::kPages, kFlagZstd, Bytes(40, std::byte(2))},
                                  {FrameKind::kAccepted, 0, {}},
                                  {FrameKind::kWord, 0, Bytes(1)}});
  Bytes alive = stream;
  alive[2 * kFrameHeaderBytes + 45 + kKindAt] = std::byte(FrameKind::kAlive);
  return {chosen(0, stream), chosen(kChecksumsAgree, stream), chosen(kChecksumsAgree, alive)};
}

void try_one(ByteSpan input) {
  const Choice choice = choice_of(input);
  Bytes stream(choice.rest.begin(), choice.rest.begin() + ptrdiff_t(std::min(choice.rest.size(), kMostBytes)));
  if (choice.first & kChecksumsAgree)
    agree(stream);
  Ends ends;
  const iovec part{stream.data(), stream.size()};
  must(ends.out->write(std::span(&part, 1)).has_value(), "the socket holds it");
  ends.out.reset();
  FrameReader reader(*ends.in);
  std::vector<Frame> frames(1);
  size_t bytes = 0;
  while (reader.read(frames.back())) {
    must(frames.back().payload.size() <= max_payload(frames.back().kind), "a frame that is too long");
    bytes += kFrameHeaderBytes + frames.back().payload.size();
    frames.emplace_back();
  }
  frames.pop_back();
  must(reader.tally().frames == frames.size() && reader.tally().bytes == bytes && bytes <= stream.size(),
       "a tally of what was not there");
  if (!has_signs_of_life(stream))
    must(std::ranges::equal(stream_of(frames), std::span(stream).first(bytes)), "frames with two spellings");
}

} // namespace stopvisor::fuzz
