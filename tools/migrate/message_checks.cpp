// SPDX-License-Identifier: Apache-2.0
#include "tools/migrate/message_checks.h"

#include <cstdint>
#include <set>
#include <utility>

namespace stopvisor::migrate {
namespace {

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

} // namespace

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

const char* fault_of(const std::vector<LinkDigest>& links) noexcept {
  if (links.empty() || links.size() > kMaxLinks)
    return "it tells of no links, or of too many";
  for (size_t at = 0; at < links.size(); ++at)
    if (links[at].number != at)
      return "it leaves out a link";
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

} // namespace stopvisor::migrate
