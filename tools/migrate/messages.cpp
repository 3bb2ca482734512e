// SPDX-License-Identifier: Apache-2.0
// The bytes of each message; docs/reference/migration-protocol.md has them as tables.
#include "tools/migrate/messages.h"

#include <algorithm>
#include <limits>
#include <set>
#include <utility>

#include "tools/migrate/texts.h"
#include "vmm/state/encoding.h"

namespace stopvisor::migrate {
namespace {

using vmm::StateReader;
using vmm::StateWriter;
using ByteSpan = std::span<const std::byte>;

// In the stream; for ever.
static_assert(uint8_t(Word::kPrepare) == 0 && uint8_t(Word::kCommit) == 1 && uint8_t(Word::kAbandon) == 2 &&
              uint8_t(Word::kPrepared) == 3 && uint8_t(Word::kRunning) == 4 && uint8_t(Word::kAbandoned) == 5);

void put_text(StateWriter& to, std::string_view text, size_t most) {
  const std::string printable = printable_text(text, most);
  to.put(static_cast<uint16_t>(printable.size()));
  to.put_bytes(std::as_bytes(std::span(printable)));
}

std::string_view get_text(StateReader& from, size_t most) noexcept {
  const size_t size = from.get<uint16_t>();
  from.refuse_unless(size <= most, "a text is too long");
  const ByteSpan bytes = from.get_bytes(size);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
std::string get_printable(StateReader& from, size_t most) {
  return printable_text(get_text(from, most), most);
}

void put_sections(StateWriter& to, const std::vector<vmm::StateSection>& sections) {
  to.put(static_cast<uint32_t>(sections.size()));
  for (const vmm::StateSection& section : sections) {
    vmm::put_fields(to, section.kind, section.version, section.instance,
                    static_cast<uint32_t>(section.payload.size()));
    to.put_bytes(section.payload);
  }
}

// What a list of sections may not have, be it to be sent or received; null where it is fine.
const char* fault_of(const std::vector<vmm::StateSection>& sections) {
  std::set<std::pair<uint32_t, uint32_t>> seen;
  for (const vmm::StateSection& section : sections) {
    if (section.version == 0)
      return "a section has no version";
    if (!seen.emplace(section.kind, section.instance).second)
      return "a section is there twice";
  }
  return sections.size() > kMaxSections ? "it has too many sections" : nullptr;
}

std::vector<vmm::StateSection> get_sections(StateReader& from) {
  std::vector<vmm::StateSection> sections;
  const auto count = from.get<uint32_t>();
  from.refuse_unless(count <= kMaxSections, "it has too many sections");
  for (uint32_t number = 0; number < count && from.left() > 0; ++number) {
    vmm::StateSection section;
    uint32_t size = 0;
    vmm::get_fields(from, section.kind, section.version, section.instance, size);
    const ByteSpan payload = from.get_bytes(size);
    section.payload.assign(payload.begin(), payload.end());
    sections.push_back(std::move(section));
  }
  from.refuse_unless(sections.size() == count, "it is too short");
  if (const char* const fault = fault_of(sections))
    from.refuse(fault);
  return sections;
}

std::unexpected<vmm::Error> refused(std::string_view operation, const char* message, std::string reason) {
  return std::unexpected(vmm::Error{std::string(operation), message, std::move(reason), vmm::Status::kRefused});
}

// Nothing may be left over of what `message` was read from.
template <class Message>
Decoded<Message> finish(StateReader& from, std::string_view operation, const char* name, Message message) {
  if (const char* const why = from.finish())
    return refused(operation, name, why);
  return message;
}

std::expected<Bytes, vmm::Error> unless_too_large(Bytes bytes, const char* name, size_t most) {
  if (bytes.size() > most)
    return std::unexpected(vmm::Error{"migrate", name,
                                      "is too large to be sent: " + std::to_string(bytes.size()) +
                                          " bytes, at most " + std::to_string(most),
                                      vmm::Status::kFailed});
  return bytes;
}

std::unexpected<vmm::Error> cannot_send(const char* name, const char* why) {
  return std::unexpected(vmm::Error{"migrate", name, std::string("cannot be sent: ") + why, vmm::Status::kFailed});
}

// The status of a refusal that is one: whoever refuses has not done it.
vmm::Status status_of(uint8_t number) noexcept {
  return number >= uint8_t(vmm::Status::kFailed) && number <= uint8_t(vmm::Status::kDrift)
             ? static_cast<vmm::Status>(number)
             : vmm::Status::kFailed;
}

void check_hello(StateReader& from, const Hello& hello, uint8_t role) {
  from.refuse_unless(hello.least_version > 0 && hello.least_version <= hello.most_version,
                     "its range of versions is none");
  from.refuse_unless((hello.required_features & ~hello.features) == 0, "it requires what it does not offer");
  from.refuse_unless(hello.id != MigrationId{}, "its migration has no id");
  from.refuse_unless(role <= uint8_t(LinkRole::kAgain), "it is for a link of no known role");
  from.refuse_unless(hello.role == LinkRole::kStream ? hello.number > 0 && hello.number < kMaxLinks
                                                     : hello.number == 0,
                     "its link has a number that it cannot have");
  from.refuse_unless(!hello.vm.empty() && printable_text(hello.vm, kMaxText) == hello.vm,
                     "its VM's name cannot be one");
}

const char* fault_of(const std::vector<MemoryRegion>& regions) noexcept {
  if (regions.empty() || regions.size() > kMaxRegions)
    return "it has no memory, or too many regions of it";
  uint64_t end = 0;
  for (const MemoryRegion& region : regions) {
    if (region.gpa % 4096 != 0 || region.bytes % 4096 != 0 || region.bytes == 0)
      return "a region of its memory is not made of pages";
    if (region.gpa > kMaxGpa || region.bytes > kMaxGpa - region.gpa)
      return "a region of its memory goes beyond all addresses";
    if (&region != &regions.front() && region.gpa <= end)
      return "regions of its memory touch, overlap, or are not in order";
    end = region.gpa + region.bytes;
  }
  return nullptr;
}

const char* fault_of(const MachineFacts& facts) {
  if (facts.streams == 0 || facts.streams > kMaxLinks)
    return "it has no links for pages, or too many";
  if (facts.cpus == 0)
    return "it has no vCPUs";
  if (facts.disks.size() > kMaxDisks)
    return "it has too many disks";
  if (const char* const fault = fault_of(facts.memory))
    return fault;
  return fault_of(facts.requirements);
}

const char* fault_of(const std::vector<LinkDigest>& links) noexcept {
  if (links.empty() || links.size() > kMaxLinks)
    return "it tells of no links, or of too many";
  for (size_t at = 0; at < links.size(); ++at)
    if (links[at].number != at)
      return "it leaves out a link";
  return nullptr;
}

} // namespace

Bytes encode(const Hello& message) {
  StateWriter to;
  vmm::put_fields(to, message.least_version, message.most_version, message.features, message.required_features);
  to.put_bytes(message.id);
  vmm::put_fields(to, static_cast<uint8_t>(message.role), message.number);
  put_text(to, message.vm, kMaxText);
  put_text(to, message.program, kMaxText);
  return to.take();
}

Bytes encode(const Welcome& message) {
  StateWriter to;
  vmm::put_fields(to, message.version, message.features);
  put_text(to, message.program, kMaxText);
  return to.take();
}

Bytes encode(const vmm::Error& refusal) {
  StateWriter to;
  to.put(static_cast<uint8_t>(refusal.status));
  put_text(to, refusal.operation, kMaxText);
  put_text(to, refusal.object, kMaxLongText);
  put_text(to, refusal.reason, kMaxLongText);
  return to.take();
}

Bytes encode(const RoundMark& message) {
  StateWriter to;
  vmm::put_fields(to, message.round, message.pages);
  return to.take();
}

Bytes encode(Word word) {
  StateWriter to;
  to.put(static_cast<uint8_t>(word));
  return to.take();
}

std::expected<Bytes, vmm::Error> encode(const MachineFacts& message) {
  if (const char* const fault = fault_of(message))
    return cannot_send("the machine", fault);
  StateWriter to;
  vmm::put_fields(to, message.streams, message.cpus, static_cast<uint32_t>(message.memory.size()));
  for (const MemoryRegion& region : message.memory)
    vmm::put_fields(to, region.gpa, region.bytes);
  to.put(static_cast<uint32_t>(message.disks.size()));
  for (const DiskFacts& disk : message.disks) {
    vmm::put_fields(to, disk.bytes, disk.read_only);
    put_text(to, disk.path, kMaxLongText);
  }
  put_sections(to, message.requirements);
  return unless_too_large(to.take(), "the machine", kMaxMachinePayload);
}

std::expected<Bytes, vmm::Error> encode(const StateMessage& message) {
  const char* fault = fault_of(message.links);
  if (fault == nullptr)
    fault = fault_of(message.sections);
  if (fault != nullptr)
    return cannot_send("the state", fault);
  StateWriter to;
  vmm::put_fields(to, message.held, static_cast<uint32_t>(message.links.size()));
  for (const LinkDigest& link : message.links)
    vmm::put_fields(to, link.number, link.frames, link.digest);
  put_sections(to, message.sections);
  return unless_too_large(to.take(), "the state", kMaxStatePayload);
}

Decoded<Hello> decode_hello(std::string_view operation, ByteSpan payload) {
  StateReader from(payload);
  Hello hello;
  vmm::get_fields(from, hello.least_version, hello.most_version, hello.features, hello.required_features);
  std::ranges::copy(from.get_bytes(hello.id.size()), hello.id.begin());
  uint8_t role = 0;
  vmm::get_fields(from, role, hello.number);
  hello.role = static_cast<LinkRole>(role);
  hello.vm = get_text(from, kMaxText);
  hello.program = get_printable(from, kMaxText);
  check_hello(from, hello, role);
  return finish(from, operation, "the hello", std::move(hello));
}

Decoded<Welcome> decode_welcome(std::string_view operation, ByteSpan payload) {
  StateReader from(payload);
  Welcome welcome;
  vmm::get_fields(from, welcome.version, welcome.features);
  welcome.program = get_printable(from, kMaxText);
  from.refuse_unless(welcome.version > 0, "its version is none");
  return finish(from, operation, "the welcome", std::move(welcome));
}

Decoded<vmm::Error> decode_refusal(std::string_view operation, ByteSpan payload) {
  StateReader from(payload);
  vmm::Error refusal;
  refusal.status = status_of(from.get<uint8_t>());
  refusal.operation = get_printable(from, kMaxText);
  refusal.object = get_printable(from, kMaxLongText);
  refusal.reason = get_printable(from, kMaxLongText);
  return finish(from, operation, "the refusal", std::move(refusal));
}

Decoded<MachineFacts> decode_machine(std::string_view operation, ByteSpan payload) {
  StateReader from(payload);
  MachineFacts facts;
  vmm::get_fields(from, facts.streams, facts.cpus);
  const auto regions = from.get<uint32_t>();
  from.refuse_unless(regions <= kMaxRegions, "it has too many regions of memory");
  for (uint32_t number = 0; number < regions && from.left() > 0; ++number) {
    MemoryRegion& region = facts.memory.emplace_back();
    vmm::get_fields(from, region.gpa, region.bytes);
  }
  const auto disks = from.get<uint32_t>();
  from.refuse_unless(disks <= kMaxDisks, "it has too many disks");
  for (uint32_t number = 0; number < disks && from.left() > 0; ++number) {
    DiskFacts& disk = facts.disks.emplace_back();
    vmm::get_fields(from, disk.bytes, disk.read_only);
    disk.path = get_printable(from, kMaxLongText);
  }
  facts.requirements = get_sections(from);
  if (const char* const why = from.finish())
    return refused(operation, "the machine", why);
  if (const char* const fault = fault_of(facts))
    return refused(operation, "the machine", fault);
  return facts;
}

Decoded<RoundMark> decode_round(std::string_view operation, ByteSpan payload) {
  StateReader from(payload);
  RoundMark mark;
  vmm::get_fields(from, mark.round, mark.pages);
  return finish(from, operation, "the end of a round", mark);
}

Decoded<StateMessage> decode_state(std::string_view operation, ByteSpan payload) {
  StateReader from(payload);
  StateMessage state;
  state.held = from.get_flag();
  const auto links = from.get<uint32_t>();
  from.refuse_unless(links <= kMaxLinks, "it tells of no links, or of too many");
  for (uint32_t number = 0; number < links && from.left() > 0; ++number) {
    LinkDigest& link = state.links.emplace_back();
    vmm::get_fields(from, link.number, link.frames, link.digest);
  }
  state.sections = get_sections(from);
  if (const char* const fault = fault_of(state.links))
    from.refuse(fault);
  return finish(from, operation, "the state", std::move(state));
}

Decoded<Word> decode_word(std::string_view operation, ByteSpan payload) {
  StateReader from(payload);
  const auto number = from.get<uint8_t>();
  from.refuse_unless(number >= uint8_t(Word::kCommit) && number <= uint8_t(Word::kAbandoned),
                     "it is no word of the hand-over");
  return finish(from, operation, "the word", static_cast<Word>(number));
}

namespace {

std::string name_of_feature(unsigned bit) {
  switch (1ULL << bit) {
  case kFeatureZstd:
    return "compression by zstd";
  case kFeatureZeroRuns:
    return "pages of zeros by name";
  case kFeatureCopies:
    return "pages alike sent once";
  case kFeaturePostCopy:
    return "post-copy";
  case kFeatureTls:
    return "TLS";
  case kFeatureSharedMemory:
    return "memory handed over on one host";
  default:
    return "feature " + std::to_string(bit);
  }
}

std::string range_of(uint16_t least, uint16_t most) {
  return least == most ? "version " + std::to_string(least)
                       : "versions " + std::to_string(least) + " to " + std::to_string(most);
}

} // namespace

std::expected<Welcome, vmm::Error> agree(std::string_view operation, const Hello& hello) {
  if (hello.least_version > kProtocolVersion || hello.most_version < kProtocolVersion)
    return refused(operation, "the protocol",
                   "the source (" + hello.program + ") speaks " +
                       range_of(hello.least_version, hello.most_version) + ", this destination version " +
                       std::to_string(kProtocolVersion));
  std::string missing;
  for (unsigned bit = 0; bit < 64; ++bit)
    if ((hello.required_features & ~kOurFeatures & 1ULL << bit) != 0)
      missing += (missing.empty() ? "" : ", ") + name_of_feature(bit);
  if (!missing.empty())
    return refused(operation, "the protocol", "the source requires what this destination lacks: " + missing);
  return Welcome{.version = kProtocolVersion, .features = hello.features & kOurFeatures, .program = {}};
}

} // namespace stopvisor::migrate
