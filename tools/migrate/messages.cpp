// SPDX-License-Identifier: Apache-2.0
// The bytes of each message, as they are sent; docs/reference/migration-protocol.md has them as tables.
#include "tools/migrate/messages.h"

#include <utility>

#include "tools/migrate/message_checks.h"
#include "tools/migrate/texts.h"
#include "vmm/state/encoding.h"

namespace stopvisor::migrate {
namespace {

using vmm::StateWriter;

// In the stream; for ever.
static_assert(uint8_t(Word::kPrepare) == 0 && uint8_t(Word::kCommit) == 1 && uint8_t(Word::kAbandon) == 2 &&
              uint8_t(Word::kPrepared) == 3 && uint8_t(Word::kRunning) == 4 && uint8_t(Word::kAbandoned) == 5);

void put_text(StateWriter& to, std::string_view text, size_t most) {
  const std::string printable = printable_text(text, most);
  to.put(static_cast<uint16_t>(printable.size()));
  to.put_bytes(std::as_bytes(std::span(printable)));
}

void put_sections(StateWriter& to, const std::vector<vmm::StateSection>& sections) {
  to.put(static_cast<uint32_t>(sections.size()));
  for (const vmm::StateSection& section : sections) {
    vmm::put_fields(to, section.kind, section.version, section.instance,
                    static_cast<uint32_t>(section.payload.size()));
    to.put_bytes(section.payload);
  }
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

} // namespace stopvisor::migrate
