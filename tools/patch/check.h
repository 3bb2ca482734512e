// SPDX-License-Identifier: Apache-2.0
// The checks a patch goes through, and why one refuses.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace stopvisor::patch {

enum class Check : uint8_t {
  kTarget,      // the guest is not the one the patch is for
  kRelations,   // depends, conflicts, replaces
  kTranslation, // an address is not mapped to memory
  kRights,      // code that is not executable, data that is not writable, by the guest's own page tables
  kExpect,      // other bytes than expected
  kRequire,     // a condition before the writes
  kRip,         // a vCPU is inside a window
  kFrames,      // what a vCPU's interrupt handler returns to is inside a window
  kStacks,      // a vCPU's stack has an address inside the patched function
  kBranch,      // a branch of the function leads into the middle of a window
  kBreakpoint,  // the guest is changing that code itself
  kOverlap,     // with another patch, or within this one
  kTables,      // the guest's kernel changes that code itself (jump labels, static calls)
  kEnsure,      // a condition after the writes
  kDrift,       // what is there is not what we wrote
};
inline constexpr size_t kCheckCount = size_t(Check::kDrift) + 1;

// The words of --force and of documents.
[[nodiscard]] const char* name_of(Check check) noexcept;
[[nodiscard]] std::optional<Check> check_named(std::string_view name) noexcept;
// Whether a user may go on against it. Not where there would be nothing to write to, or nothing to go back to.
[[nodiscard]] bool may_be_forced(Check check) noexcept;
// Whether it may be over by itself in a moment.
[[nodiscard]] bool passes_by(Check check) noexcept;
[[nodiscard]] std::string forceable_names();

class CheckSet {
public:
  void add(Check check) noexcept { bits_ |= bit(check); }
  [[nodiscard]] bool contains(Check check) const noexcept { return (bits_ & bit(check)) != 0; }
  [[nodiscard]] std::vector<Check> list() const;

private:
  static uint32_t bit(Check check) noexcept { return uint32_t{1} << static_cast<unsigned>(check); }
  uint32_t bits_ = 0;
};

struct Reason {
  Check check = Check::kTarget;
  std::string text; // "site 3 (gpa:0x1000): expected 0f 1f, found e8 12"
};

// Reasons in the order in which they were found. Many sites that fail must not hold the guest for long: of the
// further ones only the number is kept; of each check that speaks at all at least one.
class Reasons {
public:
  void add(Check check, std::string text);
  // Those of `others` that `wanted` has, or has not.
  void add(const Reasons& others, const CheckSet& wanted, bool has);
  [[nodiscard]] bool empty() const noexcept { return count() == 0; }
  [[nodiscard]] size_t count() const noexcept;
  [[nodiscard]] const std::vector<Reason>& list() const noexcept { return list_; }
  [[nodiscard]] bool all_pass_by() const noexcept;
  [[nodiscard]] bool has(Check check) const noexcept { return counts_[size_t(check)] != 0; }
  // Whether add() would keep the text.
  [[nodiscard]] bool takes_text(Check check) const noexcept { return list_.size() < kKept || !has(check); }
  // All of them on one line.
  [[nodiscard]] std::string text() const;

private:
  static constexpr size_t kKept = 64;
  std::vector<Reason> list_;
  std::array<size_t, kCheckCount> counts_{};
};

} // namespace stopvisor::patch
