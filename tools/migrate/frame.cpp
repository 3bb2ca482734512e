// SPDX-License-Identifier: Apache-2.0
#include "tools/migrate/frame.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <utility>

#include "tools/migrate/checksum.h"

namespace stopvisor::migrate {
namespace {

constexpr uint32_t kMagic = 0x474d'5653; // "SVMG", in this order in the stream
constexpr size_t kFirstPiece = 64 << 10; // of a payload: no more than this on a length's word
constexpr size_t kMostSmallKind = size_t(FrameKind::kAlive);

// As it is in the stream: this program runs on little-endian machines alone.
struct Header {
  uint32_t magic = kMagic;
  uint16_t kind = 0;
  uint16_t flags = 0;
  uint64_t number = 0;
  uint32_t length = 0;
  uint32_t zero = 0;
  uint64_t checksum = 0;
};
static_assert(sizeof(Header) == kFrameHeaderBytes);

using HeaderBytes = std::array<std::byte, kFrameHeaderBytes>;

template <typename T>
std::span<const std::byte> bytes_of(const T& value) noexcept {
  return std::as_bytes(std::span(&value, 1));
}

uint16_t flags_of(FrameKind kind) noexcept {
  return kind == FrameKind::kPages ? kFlagZstd : 0;
}

bool may_begin(FrameKind kind) noexcept {
  return kind == FrameKind::kHello || kind == FrameKind::kWelcome || kind == FrameKind::kRefusal ||
         kind == FrameKind::kAlive;
}

void count(FrameTally& tally, const Header& header) noexcept {
  if (FrameKind(header.kind) == FrameKind::kAlive)
    return;
  ++tally.frames;
  tally.bytes += kFrameHeaderBytes + header.length;
  const std::array<uint64_t, 2> link{tally.digest, header.checksum};
  tally.digest = xxh3_of(bytes_of(link));
}

uint64_t checksum_of(Header header, std::span<const std::byte> payload) noexcept {
  header.checksum = 0;
  Xxh3 sum;
  sum.add(bytes_of(header));
  sum.add(payload);
  return sum.finish();
}

} // namespace

size_t max_payload(FrameKind kind) noexcept {
  switch (kind) {
  case FrameKind::kPages:
    return kMaxPagesPayload;
  case FrameKind::kMachine:
    return kMaxMachinePayload;
  case FrameKind::kState:
    return kMaxStatePayload;
  case FrameKind::kAccepted:
  case FrameKind::kAlive:
    return 0;
  case FrameKind::kHello:
  case FrameKind::kWelcome:
  case FrameKind::kRefusal:
  case FrameKind::kRoundEnd:
  case FrameKind::kRoundDone:
  case FrameKind::kWord:
    return kMaxSmallPayload;
  }
  return 0;
}

std::string name_of(FrameKind kind) {
  static constexpr std::array<const char*, 12> kNames{nullptr,
                                                      "a hello",
                                                      "a welcome",
                                                      "a refusal",
                                                      "a machine",
                                                      "an acceptance",
                                                      "pages",
                                                      "the end of a round",
                                                      "a round's receipt",
                                                      "the state",
                                                      "a word of the hand-over",
                                                      "a sign of life"};
  static_assert(kNames.size() == kMostSmallKind + 1);
  const auto number = static_cast<size_t>(kind);
  return number > 0 && number < kNames.size() ? kNames[number] : "kind " + std::to_string(number);
}

std::expected<void, vmm::Error> FrameWriter::write(FrameKind kind, std::span<const std::byte> payload,
                                                   uint16_t flags) {
  return write(kind, std::span(&payload, 1), flags);
}

std::expected<void, vmm::Error>
FrameWriter::write(FrameKind kind, std::span<const std::span<const std::byte>> parts, uint16_t flags) {
  size_t length = 0;
  for (const auto part : parts)
    length += part.size();
  if (length > max_payload(kind))
    return std::unexpected(
        link_.error("cannot be sent " + name_of(kind) + " of " + std::to_string(length) + " bytes: too large"));
  Header header{.kind = static_cast<uint16_t>(kind),
                .flags = flags,
                .number = number_,
                .length = static_cast<uint32_t>(length)};
  Xxh3 sum;
  sum.add(bytes_of(header));
  pieces_.assign(1, iovec{&header, sizeof header});
  for (const auto part : parts) {
    sum.add(part);
    pieces_.push_back({const_cast<std::byte*>(part.data()), part.size()}); // writev() does not write to it
  }
  header.checksum = sum.finish();
  if (auto written = link_.write(pieces_); !written)
    return written;
  ++number_;
  count(tally_, header);
  return {};
}

std::unexpected<vmm::Error> FrameReader::wrong(const std::string& reason) const {
  return std::unexpected(
      link_.error("does not speak our protocol: its message " + std::to_string(number_) + " " + reason));
}

std::expected<void, vmm::Error> FrameReader::read(Frame& frame) {
  while (!error_) {
    if (auto one = read_one(frame); !one)
      error_ = std::move(one.error());
    else if (frame.kind != FrameKind::kAlive)
      return {};
  }
  return std::unexpected(*error_);
}

// Room is made for what has come, and as much again: not for what is only announced.
std::expected<void, vmm::Error> FrameReader::read_payload(std::vector<std::byte>& payload, size_t length,
                                                          Link::Reading how) {
  how.goes_on = true;
  if (length <= payload.capacity()) {
    payload.resize(length);
    return link_.read(payload, how);
  }
  payload.clear();
  while (payload.size() < length) {
    const size_t have = payload.size();
    payload.resize(std::min(length, have + std::max({kFirstPiece, have, payload.capacity() - have})));
    if (auto piece = link_.read(std::span(payload).subspan(have), how); !piece)
      return piece;
  }
  return {};
}

std::expected<void, vmm::Error> FrameReader::read_one(Frame& frame) {
  HeaderBytes raw;
  std::span<std::byte> rest(raw);
  Link::Reading how;
  if (!knows_peer_ && !known_by_) { // patience for a stranger's first byte, and once more for all up to its hello
    if (auto begun = link_.read(rest.first(1)); !begun)
      return begun;
    if (raw.front() != std::byte(kMagic & 0xff)) // whoever says less than a header is answered as well
      return wrong("does not begin as one");
    rest = rest.subspan(1);
    how.goes_on = true;
    known_by_ = Link::Clock::now() + link_.patience();
  }
  how.until = known_by_ ? known_by_ : expected_by_;
  if (auto header = link_.read(rest, how); !header)
    return header;
  Header header;
  std::memcpy(&header, raw.data(), sizeof header);
  const auto kind = static_cast<FrameKind>(header.kind);
  if (header.magic != kMagic)
    return wrong("does not begin as one");
  if (header.kind == 0 || header.kind > kMostSmallKind)
    return wrong("is of " + name_of(kind) + ", which there is not");
  if (!knows_peer_ && !may_begin(kind))
    return wrong("is " + name_of(kind) + ", and nobody has said hello");
  if (header.number != number_)
    return wrong("says that it is number " + std::to_string(header.number));
  if ((header.flags & ~flags_of(kind)) != 0 || header.zero != 0)
    return wrong("(" + name_of(kind) + ") has flags that there are not");
  if (header.length > max_payload(kind))
    return wrong("(" + name_of(kind) + ") is too long: " + std::to_string(header.length) + " bytes");
  if (auto got = read_payload(frame.payload, header.length, how); !got)
    return got;
  if (checksum_of(header, frame.payload) != header.checksum)
    return std::unexpected(link_.error("message " + std::to_string(number_) + " (" + name_of(kind) +
                                       ") is not what its checksum says: it was changed on its way"));
  frame.kind = kind;
  frame.flags = header.flags;
  if (!knows_peer_ && kind != FrameKind::kAlive) {
    knows_peer_ = true;
    known_by_.reset();
  }
  ++number_;
  count(tally_, header);
  return {};
}

} // namespace stopvisor::migrate
