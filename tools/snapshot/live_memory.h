// SPDX-License-Identifier: Apache-2.0
// The memory of a running VM as of one instant, while its guest goes on writing: vmm/frozen_memory.h.
#pragma once

#include <cstdint>
#include <expected>
#include <memory>
#include <span>
#include <vector>

#include "tools/snapshot/memory_source.h"
#include "vmm/frozen_memory.h"
#include "vmm/vm.h"

namespace stopvisor::snapshot {

class LiveMemory final : public MemorySource {
public:
  // Protects all memory while the guest runs. `vm` must outlive the object, one at a time for each.
  // CONTEXT: any thread but a participant's; takes long. RETURNS: kBusy where another one is there, errors of
  // FrozenMemory; its `operation` is the options'.
  [[nodiscard]] static std::expected<std::unique_ptr<LiveMemory>, vmm::Error> prepare(vmm::Vm& vm,
                                                                                      vmm::FreezeOptions options);
  ~LiveMemory() override;
  LiveMemory(const LiveMemory&) = delete;
  LiveMemory& operator=(const LiveMemory&) = delete;

  // This is the instant. CONTEXT: once, from a callback of the VM's stops().run().
  [[nodiscard]] std::expected<void, vmm::Error> freeze() { return named(frozen_->freeze()); }

  // CONTEXT, both: after freeze(). Each extent once; each lets the guest write there again.
  [[nodiscard]] const std::vector<Region>& regions() const override { return regions_; }
  [[nodiscard]] std::expected<ExtentBytes, vmm::Error> extent(uint64_t number,
                                                              std::span<std::byte> buffer) override;

  [[nodiscard]] vmm::FreezeFigures figures() const { return frozen_->figures(); }

private:
  explicit LiveMemory(vmm::Vm& vm);
  [[nodiscard]] std::expected<void, vmm::Error> named(std::expected<void, vmm::Error> done) const;

  vmm::Vm& vm_;
  std::string operation_;
  std::vector<Region> regions_;
  std::vector<uint64_t> places_; // of regions, in the mapping
  std::unique_ptr<vmm::FrozenMemory> frozen_;
};

} // namespace stopvisor::snapshot
