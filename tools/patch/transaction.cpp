// SPDX-License-Identifier: Apache-2.0
#include "tools/patch/transaction.h"

#include <algorithm>
#include <exception>

namespace stopvisor::patch {

Transaction::Transaction(Guest& guest, Preparation& prepared, const Change& change, const Rules& rules,
                         stopper::FunctionRef<void()> log, Hooks* hooks)
    : guest_(guest), prepared_(prepared), change_(change), rules_(rules), log_(log), hooks_(hooks),
      finder_(guest.memory()) {
  size_t longest = 0;
  for (const Site& site : prepared.sites)
    longest = std::max({longest, site.size, site.window ? size_t(site.window->size()) : size_t{0}});
  room_.resize(longest);
  ranges_.reserve(2 * prepared.sites.size());
  add(prepared.reasons);
}

bool Transaction::held_too_long() const {
  return rules_.max_hold && std::chrono::steady_clock::now() - began_ >= *rules_.max_hold;
}

// No exception crosses a stop. The only ones there can be are of memory that the host does not have.
void Transaction::run(const Guest::Moment& moment) noexcept {
  began_ = std::chrono::steady_clock::now();
  sequence_ = moment.sequence;
  try {
    run_under(moment);
  } catch (const std::exception&) {
    end_ = End::kFailed;
    if (written_ != 0)
      restore(written_);
  }
  work_ = std::chrono::steady_clock::now() - began_;
}

void Transaction::run_under(const Guest::Moment& moment) {
  reach(Step::kHeld);
  if (moment.kernel != prepared_.kernel || guest_.resets() != prepared_.resets) {
    end_ = End::kStale;
    return;
  }
  Spaces spaces(guest_, moment.kernel.get());
  find(spaces);
  compare();
  if (change_.apply != nullptr)
    check_conditions(Check::kRequire, change_.apply->require, spaces, reasons_);
  check_overlaps();
  if (prepared_.writes_code() && !rules_.audit) {
    check_functions(spaces);
    Reasons vcpus;
    vcpu_checks_.run(spaces, prepared_, guest_, rules_.stacks, vcpus);
    add(vcpus);
  }
  reach(Step::kChecked);
  if (stale_)
    end_ = End::kStale;
  else if (!reasons_.empty())
    end_ = End::kRefused;
  else if (!rules_.commit)
    end_ = End::kChecked;
  else if (held_too_long())
    end_ = End::kTooLong;
  else
    commit(spaces);
}

// Every translation again, and what is there.
void Transaction::find(Spaces& spaces) {
  const auto refuse = [&](const Site& site, const std::string& text) {
    reasons_.add(Check::kTranslation, site.name + ": " + text);
  };
  for (Site& site : prepared_.sites) {
    const auto location = spaces.locate(site.place);
    if (!location) {
      refuse(site, location.error());
      continue;
    }
    site.location = *location;
    if (site.kind == SiteKind::kCode && site.write != nullptr)
      stale_ = stale_ || !site.window || site.decoded_at != location->address;
    if (auto found = finder_.find(*location, site.size, site.pieces); !found) {
      refuse(site, found.error());
      continue;
    }
    copy_out(site.pieces, site.found);
    if (!site.window)
      continue;
    const Location window{site.window->begin, location->paging};
    if (auto found = finder_.find(window, site.window->size(), site.window_pieces); !found)
      refuse(site, found.error());
  }
}

bool Transaction::write(const Site& site, const Bytes& bytes) noexcept {
  std::span<const std::byte> rest(bytes);
  for (const Piece& piece : site.pieces.list) {
    if (!guest_.write(piece.gpa, piece.host, rest.first(piece.host.size())))
      return false;
    rest = rest.subspan(piece.host.size());
  }
  return true;
}

bool Transaction::reads(const Site& site, const Bytes& bytes) noexcept {
  const std::span<std::byte> now(room_.data(), site.size);
  copy_out(site.pieces, now);
  return std::ranges::equal(now, bytes);
}

// For a write that fails the undo log is `found` of every site; for a later revert it is the ledger's record.
void Transaction::commit(Spaces& spaces) {
  log_();
  for (const Site& site : prepared_.sites) {
    ++written_;
    if (!write(site, site.after)) {
      reasons_.add(Check::kEnsure, site.name + ": cannot be written");
      return restore(written_);
    }
  }
  reach(Step::kWritten);
  for (Site& site : prepared_.sites)
    if (!reads(site, site.after))
      reasons_.add(Check::kEnsure, site.name + ": does not read back as it was written");
  if (reasons_.empty()) {
    reach(Step::kReadBack);
    if (change_.apply != nullptr)
      check_conditions(Check::kEnsure, change_.apply->ensure, spaces, reasons_);
  }
  if (!reasons_.empty())
    return restore(prepared_.sites.size());
  end_ = End::kCommitted;
}

// CONTEXT: may follow an exception, so that it allocates nothing: which sites could not be restored is counted.
void Transaction::restore(size_t written) noexcept {
  for (size_t i = written; i > 0; --i)
    (void)write(prepared_.sites[i - 1], prepared_.sites[i - 1].found); // what counts is what is read
  for (const Site& site : prepared_.sites)
    if (!reads(site, site.found))
      ++lost_;
  end_ = lost_ == 0 ? End::kRestored : End::kMixed;
}

} // namespace stopvisor::patch
