// SPDX-License-Identifier: Apache-2.0
// A chain's memory for a guest that takes it as it needs it.
#pragma once

#include <optional>

#include "tools/snapshot/chain.h"
#include "vmm/absent_memory.h"

namespace stopvisor::snapshot {

// CONTEXT: as MemoryOrigin has it; `chain` outlives the object. Offsets are in the guest's memory, its regions one
// behind the other. Each but the last is a multiple of what is asked for.
class ChainOrigin final : public vmm::MemoryOrigin {
public:
  explicit ChainOrigin(const Chain& chain) : chain_(chain) {}

  [[nodiscard]] bool is_zero(uint64_t offset, uint64_t bytes) const override;
  [[nodiscard]] std::expected<void, vmm::Error> read(uint64_t offset, std::span<std::byte> to,
                                                     bool zeros) const override;

private:
  // Where it is in the memory file. RETURNS: nothing behind the last region.
  [[nodiscard]] std::optional<uint64_t> place_of(uint64_t offset) const;
  [[nodiscard]] bool is_zero_extent(uint64_t number) const;

  const Chain& chain_;
};

} // namespace stopvisor::snapshot
