// SPDX-License-Identifier: Apache-2.0
// Memory: that of a machine that was restored, and who writes to it.
#include <algorithm>
#include <utility>

#include "vmm/absent_memory.h"
#include "vmm/dirty_log.h"
#include "vmm/vm_parts.h"

namespace stopvisor::vmm {
namespace {

constexpr uint64_t kBlockBytes = 1 << 20;

} // namespace

std::expected<void, Error> Vm::take_memory_from(std::unique_ptr<MemoryOrigin> origin,
                                                std::function<void(const Error&)> failed) {
  const std::span<const MemorySlot> slots = parts_->memory.slots();
  const std::span<std::byte> all(slots.front().host, parts_->memory.size_bytes()); // one mapping, see there
  const bool huge = parts_->memory.backing() == MemoryBacking::kHugetlb;
  auto absent = AbsentMemory::begin(all, std::move(origin),
                                    {.operation = "restore",
                                     .block_bytes = huge ? kHugePageBytes : kBlockBytes,
                                     .is_file = parts_->memory.backing() != MemoryBacking::kAnonymous,
                                     .failed = std::move(failed)});
  if (!absent)
    return std::unexpected(std::move(absent.error()));
  parts_->absent = *std::move(absent);
  return {};
}

std::expected<void, Error> Vm::map_memory(int fd, std::span<const uint64_t> offsets) {
  return parts_->memory.map_file(fd, offsets);
}

std::expected<std::unique_ptr<DirtyLog>, Error> Vm::log_dirty_pages(const std::string& operation) {
  return begin_dirty_log(operation, {parts_->kvm, parts_->memory, parts_->written_pages, parts_->dirty_log_taken},
                         best_dirty_log_way(parts_->system));
}

AbsentMemory* Vm::absent_memory() noexcept {
  return parts_->absent.get();
}

} // namespace stopvisor::vmm
