// SPDX-License-Identifier: Apache-2.0
// Writes and reads state.bin.
#include "tools/snapshot/state_file.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <string>
#include <utility>

#include "vmm/units.h"

namespace stopvisor::snapshot {
namespace {

constexpr size_t padded(size_t size) noexcept {
  return (size + 7) / 8 * 8;
}

std::unexpected<vmm::Error> fail(std::string_view operation, std::string_view object, std::string reason,
                                 vmm::Status status) {
  return std::unexpected(vmm::Error{std::string(operation), std::string(object), std::move(reason), status});
}

template <typename T>
void append(std::vector<std::byte>& bytes, const T& value) {
  const auto* const from = reinterpret_cast<const std::byte*>(&value);
  bytes.insert(bytes.end(), from, from + sizeof(value));
}

// RETURNS: false where there are not enough bytes.
template <typename T>
bool take(ByteSpan& bytes, T& value) {
  if (bytes.size() < sizeof(value))
    return false;
  std::memcpy(&value, bytes.data(), sizeof(value));
  bytes = bytes.subspan(sizeof(value));
  return true;
}

// Takes the payload and its padding. RETURNS: what is wrong, or an empty string.
std::string take_payload(ByteSpan& bytes, const SectionHeader& header, vmm::StateSection& section) {
  if (header.zero != 0 || header.version == 0)
    return "has a header with fields that are none";
  if (header.length > bytes.size() || padded(header.length) > bytes.size())
    return "goes beyond the end of the file";
  const ByteSpan payload = bytes.first(header.length);
  const ByteSpan padding = bytes.subspan(header.length, padded(header.length) - header.length);
  if (xxh3_of(payload) != header.xxh3)
    return "is not what its checksum says";
  if (!std::ranges::all_of(padding, [](std::byte byte) { return byte == std::byte(0); }))
    return "has something behind it";
  bytes = bytes.subspan(padded(header.length));
  section = {header.kind, header.version, header.instance, {payload.begin(), payload.end()}};
  return {};
}

std::string name_of(size_t number, const SectionHeader& header) {
  return "section " + std::to_string(number) + " (kind " + vmm::to_hex(header.kind) + ", instance " +
         std::to_string(header.instance) + ") ";
}

} // namespace

std::expected<std::vector<std::byte>, vmm::Error> write_state(std::string_view operation, std::string_view object,
                                                              const Sections& sections) {
  const auto wrong = [&](const char* reason) { return fail(operation, object, reason, vmm::Status::kFailed); };
  if (sections.size() > kMaxSections)
    return wrong("the state has too many sections");
  size_t size = sizeof(StateHeader);
  std::set<std::pair<uint32_t, uint32_t>> seen;
  for (const auto& section : sections) {
    if (section.payload.size() <= kMaxStateBytes)
      size += sizeof(SectionHeader) + padded(section.payload.size());
    if (section.payload.size() > kMaxStateBytes || size > kMaxStateBytes)
      return wrong("the state is too large");
    if (section.version == 0 || !seen.emplace(section.kind, section.instance).second)
      return wrong("the state has a section twice, or one without a version");
  }
  std::vector<std::byte> bytes;
  bytes.reserve(size);
  append(bytes, StateHeader{.sections = static_cast<uint32_t>(sections.size())});
  for (const auto& section : sections) {
    append(bytes, SectionHeader{.kind = section.kind,
                                .version = section.version,
                                .instance = section.instance,
                                .length = section.payload.size(),
                                .xxh3 = xxh3_of(section.payload)});
    bytes.insert(bytes.end(), section.payload.begin(), section.payload.end());
    bytes.resize(padded(bytes.size()));
  }
  return bytes;
}

std::expected<Sections, vmm::Error> read_state(std::string_view operation, std::string_view object,
                                               ByteSpan bytes) {
  const auto wrong = [&](std::string reason) {
    return fail(operation, object, std::move(reason), vmm::Status::kRefused);
  };
  StateHeader header;
  if (!take(bytes, header) || header.magic != StateHeader{}.magic || header.zero != 0 ||
      header.sections > kMaxSections)
    return wrong("is not a state file of format 1");
  Sections sections;
  std::set<std::pair<uint32_t, uint32_t>> seen;
  for (size_t number = 0; number < header.sections; ++number) {
    SectionHeader of_section;
    if (!take(bytes, of_section))
      return wrong("ends in the header of section " + std::to_string(number));
    vmm::StateSection section;
    if (std::string reason = take_payload(bytes, of_section, section); !reason.empty())
      return wrong(name_of(number, of_section) + reason);
    if (!seen.emplace(section.kind, section.instance).second)
      return wrong(name_of(number, of_section) + "is there twice");
    sections.push_back(std::move(section));
  }
  if (!bytes.empty())
    return wrong("has " + std::to_string(bytes.size()) + " bytes behind its last section");
  return sections;
}

} // namespace stopvisor::snapshot
