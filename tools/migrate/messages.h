// SPDX-License-Identifier: Apache-2.0
// What the frames of a migration say, but for pages: each message as a struct, with its bytes.
//
// What is read comes from whoever called; each decode checks everything that can be checked without a VM, and
// RETURNS kRefused naming the message and what is wrong with it.
#pragma once

#include <array>
#include <cstdint>
#include <expected>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tools/migrate/frame.h"
#include "tools/migrate/handover.h"
#include "vmm/error.h"
#include "vmm/state/section.h"

namespace stopvisor::migrate {

using MigrationId = std::array<std::byte, 16>; // random and secret: who knows it may join the migration

inline constexpr uint16_t kProtocolVersion = 1; // that we speak; a range is offered, so that it can grow

enum Feature : uint64_t { // offered by the caller, taken by the answer: both know it then
  kFeatureZstd = 1U << 0,
  kFeatureZeroRuns = 1U << 1,
  kFeatureCopies = 1U << 2, // a page that is like one before it in its batch
  // Kept for what is to come, and refused where it is required: post-copy, TLS, memory handed over on one host.
  kFeaturePostCopy = 1U << 16,
  kFeatureTls = 1U << 17,
  kFeatureSharedMemory = 1U << 18,
};
inline constexpr uint64_t kOurFeatures = kFeatureZstd | kFeatureZeroRuns | kFeatureCopies;

enum class LinkRole : uint8_t {
  kControl = 0, // the first one: everything can come on it
  kStream = 1,  // pages and round ends alone
  kAgain = 2,   // the source dials again, to learn who has the guest
};

struct Hello {
  uint16_t least_version = kProtocolVersion;
  uint16_t most_version = kProtocolVersion;
  uint64_t features = 0;          // offered
  uint64_t required_features = 0; // the migration makes no sense without
  MigrationId id{};
  LinkRole role = LinkRole::kControl;
  uint16_t number = 0; // of a stream, from 1
  std::string vm;      // its name, 255 bytes at most, printable
  std::string program; // "stopvisor 0.1.0", for people

  friend bool operator==(const Hello&, const Hello&) = default;
};

struct Welcome {
  uint16_t version = kProtocolVersion;
  uint64_t features = 0; // taken
  std::string program;   // for people

  friend bool operator==(const Welcome&, const Welcome&) = default;
};

struct MemoryRegion { // regions rise, and do not touch: a run of pages is within one
  uint64_t gpa = 0;
  uint64_t bytes = 0;

  friend bool operator==(const MemoryRegion&, const MemoryRegion&) = default;
};

struct DiskFacts {
  uint64_t bytes = 0;
  bool read_only = false;
  std::string path; // at the source, for people

  friend bool operator==(const DiskFacts&, const DiskFacts&) = default;
};

struct MachineFacts {
  uint16_t streams = 1; // links that carry pages, the control link included; 16 at most
  uint32_t cpus = 0;
  std::vector<MemoryRegion> memory;
  std::vector<DiskFacts> disks;
  std::vector<vmm::StateSection> requirements; // Vm::save_requirements()

  friend bool operator==(const MachineFacts&, const MachineFacts&) = default;
};

struct RoundMark { // kRoundEnd and kRoundDone
  uint32_t round = 0;
  uint64_t pages = 0; // of this round, on this link (end), on all (done)

  friend bool operator==(const RoundMark&, const RoundMark&) = default;
};

// The source's tally of a link (FrameWriter) once the last round's kRoundEnd is in it: the destination's
// (FrameReader), as it was when it had read that, is the same or something is missing.
struct LinkDigest {
  uint16_t number = 0; // 0: the control link
  uint64_t frames = 0;
  uint64_t digest = 0;

  friend bool operator==(const LinkDigest&, const LinkDigest&) = default;
};

struct StateMessage {                      // Word::kPrepare
  bool held = false;                       // somebody had paused it: it is not to run at the destination either
  std::vector<LinkDigest> links;           // each link that carries pages, by rising numbers from 0
  std::vector<vmm::StateSection> sections; // with the patch ledger

  friend bool operator==(const StateMessage&, const StateMessage&) = default;
};

inline constexpr size_t kMaxText = 255;      // of a name
inline constexpr size_t kMaxLongText = 4095; // of a path, a reason
inline constexpr size_t kMaxLinks = 16;
inline constexpr size_t kMaxRegions = 64;
inline constexpr size_t kMaxDisks = 64;
inline constexpr size_t kMaxSections = 65536;
inline constexpr uint64_t kMaxGpa = 1ULL << 52; // where the addresses of the architecture end

using Bytes = std::vector<std::byte>;
template <class Message>
using Decoded = std::expected<Message, vmm::Error>;

// Texts are cut to their bound, and what is not printable in them becomes '?'.
[[nodiscard]] Bytes encode(const Hello& message);
[[nodiscard]] Bytes encode(const Welcome& message);
[[nodiscard]] Bytes encode(const vmm::Error& refusal);
[[nodiscard]] Bytes encode(const RoundMark& message);
[[nodiscard]] Bytes encode(Word word);
// RETURNS: kFailed where it is too large to be sent.
[[nodiscard]] std::expected<Bytes, vmm::Error> encode(const MachineFacts& message);
[[nodiscard]] std::expected<Bytes, vmm::Error> encode(const StateMessage& message);

// CONTEXT, of all: any thread; do not block. Texts for people are made printable, whatever they hold.
[[nodiscard]] Decoded<Hello> decode_hello(std::string_view operation, std::span<const std::byte> payload);
[[nodiscard]] Decoded<Welcome> decode_welcome(std::string_view operation, std::span<const std::byte> payload);
// What the other side says of itself; texts are cut to a line, and made printable.
[[nodiscard]] Decoded<vmm::Error> decode_refusal(std::string_view operation, std::span<const std::byte> payload);
[[nodiscard]] Decoded<MachineFacts> decode_machine(std::string_view operation, std::span<const std::byte> payload);
[[nodiscard]] Decoded<RoundMark> decode_round(std::string_view operation, std::span<const std::byte> payload);
[[nodiscard]] Decoded<StateMessage> decode_state(std::string_view operation, std::span<const std::byte> payload);
// Any but kPrepare, which comes with the state.
[[nodiscard]] Decoded<Word> decode_word(std::string_view operation, std::span<const std::byte> payload);

// What both sides settle on. RETURNS: kRefused, naming versions or the feature that is missing.
[[nodiscard]] std::expected<Welcome, vmm::Error> agree(std::string_view operation, const Hello& hello);

} // namespace stopvisor::migrate
