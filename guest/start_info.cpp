// SPDX-License-Identifier: Apache-2.0
// hvm_start_info, as Xen's public header arch-x86/hvm/start_info.h defines it.
#include "guest/start_info.h"

namespace stopvisor::probe {

struct StartInfo {
  uint32_t magic;
  uint32_t version;
  uint32_t flags;
  uint32_t module_count;
  uint64_t modules_gpa;
  uint64_t command_line_gpa;
  uint64_t rsdp_gpa;
  uint64_t memory_map_gpa; // from here on since version 1
  uint32_t memory_map_entries;
  uint32_t reserved;
};

namespace {

constexpr uint32_t kStartMagic = 0x336e'c578;
constexpr uint32_t kTypeRam = 1;
constexpr uint32_t kMaxEntries = 128;
constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kFourGiB = uint64_t{1} << 32;

struct MemoryMapEntry {
  uint64_t address;
  uint64_t size;
  uint32_t type;
  uint32_t reserved;
};

bool valid(const StartInfo* info) {
  return info != nullptr && info->magic == kStartMagic;
}

} // namespace

Memory read_memory_map(const StartInfo* info) {
  Memory memory;
  if (!valid(info) || info->version < 1)
    return memory;
  const auto* entries = reinterpret_cast<const MemoryMapEntry*>(info->memory_map_gpa);
  for (uint32_t i = 0; i < info->memory_map_entries && i < kMaxEntries; ++i) {
    const MemoryMapEntry& entry = entries[i];
    if (entry.type != kTypeRam)
      continue;
    const uint64_t end = entry.address + entry.size;
    memory.total_bytes += entry.size;
    if (entry.address <= kMiB && end > kMiB)
      memory.low_end = end < kFourGiB ? end : kFourGiB;
    if (entry.address == kFourGiB)
      memory.high_end = end;
  }
  return memory;
}

void read_command_line(const StartInfo* info, char* to, uint32_t size) {
  uint32_t length = 0;
  if (valid(info) && info->command_line_gpa != 0) {
    const auto* text = reinterpret_cast<const char*>(info->command_line_gpa);
    for (; length + 1 < size && text[length] != 0; ++length)
      to[length] = text[length] == '\n' || text[length] == '\t' ? ' ' : text[length];
  }
  to[length] = 0;
}

} // namespace stopvisor::probe
