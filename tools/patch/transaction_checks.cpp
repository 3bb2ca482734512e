// SPDX-License-Identifier: Apache-2.0
// What a transaction compares under the stop: bytes, rights, code that the guest changes itself, ranges,
// conditions.
#include <algorithm>
#include <cstring>

#include "tools/patch/text.h"
#include "tools/patch/transaction.h"
#include "vmm/units.h"

namespace stopvisor::patch {
namespace {

constexpr std::byte kBreakpoint{0xcc};

// Copies what two runs of guest memory share from one's bytes into the other's.
void copy_shared(const Pieces& from, const Bytes& bytes, const Pieces& to, Bytes& into) noexcept {
  size_t from_done = 0;
  for (const Piece& source : from.list) {
    size_t to_done = 0;
    for (const Piece& target : to.list) {
      const uint64_t begin = std::max(source.gpa.value, target.gpa.value);
      const uint64_t end = std::min(source.gpa.value + source.host.size(), target.gpa.value + target.host.size());
      if (begin < end)
        std::memcpy(into.data() + to_done + (begin - target.gpa.value),
                    bytes.data() + from_done + (begin - source.gpa.value), end - begin);
      to_done += target.host.size();
    }
    from_done += source.host.size();
  }
}

} // namespace

void Transaction::compare() {
  for (Site& site : prepared_.sites) {
    if (!site.is_there())
      continue;
    site.base = site.found;
    if (site.applied == nullptr)
      continue;
    site.after = site.applied->before;
    if (site.found != site.applied->after && !is_breakpoint_alone(site, site.applied->after, {}))
      add(Check::kDrift, site.name + ": " + three_ways(site.applied->before, site.applied->after, site.found));
  }
  for (Site& site : prepared_.sites) {
    if (!site.is_there() || site.applied != nullptr)
      continue;
    for (const Site& taken_back : prepared_.sites)
      if (taken_back.applied != nullptr && taken_back.is_there())
        copy_shared(taken_back.pieces, taken_back.after, site.pieces, site.base);
    compare_expected(site);
    check_rights(site);
    transform(site.write->operation, site.base, site.after);
  }
  overlay();
  if (rules_.audit)
    return;
  for (const Site& site : prepared_.sites)
    if (site.is_there() && !site.window_pieces.list.empty()) {
      stale_ = stale_ || !is_as_decoded(site);
      check_breakpoints(site);
    }
}

// What is taken back and written again by this transaction gets its final bytes at once.
void Transaction::overlay() {
  for (Site& taken_back : prepared_.sites)
    if (taken_back.applied != nullptr && taken_back.is_there())
      for (const Site& site : prepared_.sites)
        if (site.applied == nullptr && site.is_there())
          copy_shared(site.pieces, site.after, taken_back.pieces, taken_back.after);
}

void Transaction::compare_expected(Site& site) {
  if (is_expected(*site.write, site.base) || is_breakpoint_alone(site, site.write->expect, site.write->mask))
    return;
  const bool shown = list_for(Check::kExpect).takes_text(Check::kExpect);
  add(Check::kExpect,
      shown ? site.name + ": " + difference(site.write->expect, site.write->mask, site.base) : std::string());
}

void Transaction::check_rights(const Site& site) {
  if (site.kind == SiteKind::kCode && !site.pieces.executable)
    add(Check::kRights, site.name + ": is code, and the guest's page tables say that it cannot be executed");
  if (site.kind == SiteKind::kData && !site.pieces.writable)
    add(Check::kRights, site.name + ": is data, and the guest's page tables say that it cannot be written");
}

// Whether what differs is a breakpoint of the guest's own: check_breakpoints() tells of it, and it may pass by. An
// audit has no such excuse.
bool Transaction::is_breakpoint_alone(const Site& site, const Bytes& expected, const Bytes& mask) const {
  if (rules_.audit || !site.window || !site.location || rules_.forced.contains(Check::kBreakpoint))
    return false;
  for (size_t i = 0; i < site.base.size(); ++i) {
    const std::byte counts = mask.empty() ? std::byte{0xff} : mask[i];
    if (((site.base[i] ^ expected[i]) & counts) == std::byte{0})
      continue;
    if (site.base[i] != kBreakpoint ||
        std::ranges::find(site.window->starts, site.location->address + i) == site.window->starts.end())
      return false;
  }
  return true;
}

// The window's boundaries are those of the code that was decoded.
bool Transaction::is_as_decoded(const Site& site) {
  if (site.window_code.empty())
    return true;
  const std::span<std::byte> now(room_.data(), site.window_code.size());
  copy_out(site.window_pieces, now);
  return std::ranges::equal(now, site.window_code);
}

// A guest that changes its own code puts a breakpoint there first (Linux: text_poke_bp(), kprobes).
void Transaction::check_breakpoints(const Site& site) {
  if (!site.window || !site.location)
    return;
  const Window& window = *site.window;
  const std::span<std::byte> now(room_.data(), window.size());
  copy_out(site.window_pieces, now);
  for (const uint64_t start : window.starts) {
    if (now[start - window.begin] != kBreakpoint)
      continue;
    const uint64_t in_site = start - site.location->address;
    const Bytes& expected = site.applied != nullptr ? site.applied->after : site.write->expect;
    if (in_site < site.size && expected[in_site] == kBreakpoint)
      continue;
    add(Check::kBreakpoint, site.name + ": the guest has a breakpoint at " + vmm::to_hex(start) +
                                ": it changes or watches this code itself");
  }
}

void Transaction::check_functions(Spaces& spaces) {
  for (FunctionCopy& function : prepared_.functions) {
    auto location = spaces.locate(function.at);
    const Location begins{function.address, location ? location->paging : nullptr};
    if (location && finder_.find(begins, function.bytes.size(), function_pieces_) &&
        holds(function_pieces_, function.bytes))
      continue;
    if (rules_.forced.contains(Check::kBranch))
      add(Check::kBranch, "the function at " + vmm::to_hex(function.address) + " has changed since it was decoded");
    else
      stale_ = true;
  }
}

void Transaction::check_overlaps() {
  ranges_.clear();
  for (const Site& site : prepared_.sites)
    if (site.applied == nullptr)
      for (const Piece& piece : site.pieces.list)
        ranges_.push_back({piece.gpa.value, piece.gpa.value + piece.host.size(), &site});
  std::ranges::sort(ranges_, {}, &Range::begin);
  for (size_t i = 1; i < ranges_.size(); ++i)
    if (ranges_[i].begin < ranges_[i - 1].end)
      add(Check::kOverlap, ranges_[i].site->name + ": overlaps " + ranges_[i - 1].site->name +
                               " at gpa:" + vmm::to_hex(ranges_[i].begin));
  for (const Range& range : ranges_) {
    // Foreign ranges do not overlap each other: the last that begins before this one's end is the only candidate.
    const auto after = std::ranges::lower_bound(prepared_.foreign, range.end, {}, &Preparation::Foreign::begin);
    if (after != prepared_.foreign.begin() && std::prev(after)->end > range.begin)
      add(Check::kOverlap, range.site->name + ": overlaps patch " + std::prev(after)->patch +
                               " at gpa:" + vmm::to_hex(std::max(range.begin, std::prev(after)->begin)));
  }
}

void Transaction::check_conditions(Check check, const std::vector<Predicate>& predicates, Spaces& spaces,
                                   Reasons& reasons) {
  for (const Predicate& predicate : predicates) {
    const std::string name = std::string(name_of(check)) + " " +
                             std::to_string(&predicate - predicates.data() + 1) + " (" + to_string(predicate.at) +
                             ")";
    const auto location = spaces.locate(predicate.at);
    uint64_t word = 0; // little endian on both sides
    const auto bytes = std::as_writable_bytes(std::span(&word, 1)).first(predicate.size);
    if (!location || !read_at(*location, bytes, guest_.memory())) {
      reasons.add(Check::kTranslation, name + ": " + (location ? "is not all mapped to memory" : location.error()));
      continue;
    }
    if (predicate.holds_for(word))
      continue;
    const std::string text = name + ": is " + vmm::to_hex(word) + ", must be " + name_of(predicate.comparison) +
                             " " + vmm::to_hex(predicate.value);
    if (check == Check::kRequire)
      add(check, text);
    else
      reasons.add(check, text);
  }
}

} // namespace stopvisor::patch
