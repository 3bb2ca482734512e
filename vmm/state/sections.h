// SPDX-License-Identifier: Apache-2.0
// The sections of a state, found by what they are; each is to be taken once, and nothing may be left over.
#pragma once

#include <cstdint>
#include <expected>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "vmm/error.h"
#include "vmm/state/encoding.h"
#include "vmm/state/section.h"

namespace stopvisor::vmm {

// For people: "vCPU 3's MSRs", "the serial port"; of a kind that is not known, its number.
[[nodiscard]] std::string name_of_section(uint32_t kind, uint32_t instance);

// kFailed about a section, as what a restore ends with.
[[nodiscard]] Error wrong_section(StateKind kind, uint32_t instance, const std::string& reason);

class StateSections {
public:
  // RETURNS: kFailed for a kind that this program does not know, and for two of the same kind and instance.
  // `sections` outlives the object.
  [[nodiscard]] static std::expected<StateSections, Error> index(std::span<const StateSection> sections);

  [[nodiscard]] bool has(StateKind kind, uint32_t instance) const noexcept;
  // How many there are of a kind, and the largest instance is one less: else 0.
  [[nodiscard]] uint32_t count(StateKind kind) const noexcept;
  // Calls `read` for the payload, which is to read all of it.
  // RETURNS: kFailed where the section is missing, of a version that is not `version`, or was refused.
  [[nodiscard]] std::expected<void, Error> take(StateKind kind, uint32_t version, uint32_t instance,
                                                const std::function<void(StateReader&)>& read);
  // A section, where it is there, is for somebody else.
  void pass_over(StateKind kind, uint32_t instance) noexcept;
  // RETURNS: kFailed, naming a section that nobody has taken.
  [[nodiscard]] std::expected<void, Error> finish() const;

private:
  struct Entry {
    const StateSection* section;
    bool taken;
  };
  [[nodiscard]] const Entry* find(StateKind kind, uint32_t instance) const noexcept;
  std::vector<Entry> entries_; // sorted by kind and instance
};

} // namespace stopvisor::vmm
