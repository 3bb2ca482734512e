// SPDX-License-Identifier: Apache-2.0
// Takes what the other side said apart; messages.cpp has the same lists of fields for the other way.
#include <algorithm>
#include <utility>

#include "tools/migrate/message_checks.h"
#include "tools/migrate/messages.h"
#include "tools/migrate/texts.h"
#include "vmm/state/encoding.h"

namespace stopvisor::migrate {
namespace {

using vmm::StateReader;
using ByteSpan = std::span<const std::byte>;

std::string_view get_text(StateReader& from, size_t most) noexcept {
  const size_t size = from.get<uint16_t>();
  from.refuse_unless(size <= most, "a text is too long");
  const ByteSpan bytes = from.get_bytes(size);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
std::string get_printable(StateReader& from, size_t most) {
  return printable_text(get_text(from, most), most);
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

} // namespace

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

} // namespace stopvisor::migrate
