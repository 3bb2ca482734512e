// SPDX-License-Identifier: Apache-2.0
// Where the vCPUs are: inside what is to be changed, or about to come back into it.
//
// This narrows what a stop does not give: a held guest is not a quiescent one (docs/explanation/patching.md).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tools/patch/preparation.h"

namespace stopvisor::patch {

class VcpuChecks {
public:
  // Makes its rooms. CONTEXT: before the stop.
  VcpuChecks();

  // Adds a reason for each vCPU whose instruction pointer, or whose interrupt handler's way back, lies in a window;
  // with `stacks` also for each word on its present stack that lies in a function that is changed.
  // CONTEXT: under a stop, with the sites' pieces filled in.
  void run(Spaces& spaces, const Preparation& prepared, const Guest& guest, bool stacks, Reasons& reasons);

private:
  // What stands on a stack from `address` up, in words_.
  struct Stretch {
    uint64_t address = 0;
    size_t words = 0;
    [[nodiscard]] bool has(uint64_t at) const noexcept { return at - address < words * sizeof(uint64_t); }
  };
  void search_stacks(uint32_t cpu, const vmm::Registers& registers, bool stacks);
  [[nodiscard]] Stretch read_stretch(const vmm::Registers& registers, uint64_t from);
  void check_frame(uint32_t cpu, const vmm::Registers& registers, std::span<const uint64_t> words);
  void check_word(uint32_t cpu, uint64_t word);
  void check_point(Check check, const char* what, uint32_t cpu, uint64_t at, const vmm::Registers& registers);

  const Preparation* prepared_ = nullptr;
  const Guest* guest_ = nullptr;
  const vmm::GuestMemory* memory_ = nullptr;
  Reasons* reasons_ = nullptr;
  std::vector<uint64_t> words_;
};

} // namespace stopvisor::patch
