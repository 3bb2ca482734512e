// SPDX-License-Identifier: Apache-2.0
#include "tools/patch/ledger_state.h"

#include <algorithm>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "vmm/state/encoding.h"

namespace stopvisor::patch {
namespace {

using vmm::StateReader;
using vmm::StateWriter;

constexpr uint32_t kVersion = 1;
constexpr size_t kMaxRecords = 4096;
constexpr size_t kMaxTextBytes = kMaxManifestBytes;
constexpr size_t kMaxStarts = kMaxFunctionBytes;
constexpr size_t kMaxPieces = kMaxSiteBytes; // one for each byte at the very most

void put_bytes(StateWriter& to, std::span<const std::byte> bytes) {
  to.put(static_cast<uint32_t>(bytes.size()));
  to.put_bytes(bytes);
}
void put_text(StateWriter& to, std::string_view text) {
  put_bytes(to, std::as_bytes(std::span(text.data(), text.size())));
}

void put_time(StateWriter& to, std::chrono::system_clock::time_point at) {
  using std::chrono::nanoseconds;
  to.put(static_cast<uint64_t>(std::chrono::duration_cast<nanoseconds>(at.time_since_epoch()).count()));
}

void put_author(StateWriter& to, const Author& author) {
  to.put(static_cast<uint32_t>(author.uid));
  to.put(static_cast<uint32_t>(author.pid));
}

void put_cost(StateWriter& to, const Cost& cost) {
  to.put(cost.attempts);
  to.put(static_cast<uint64_t>(cost.work_ns));
  to.put(cost.stop.has_value());
  const StopTimes stop = cost.stop.value_or(StopTimes{});
  to.put(stop.sequence);
  to.put(static_cast<uint64_t>(stop.gather_ns));
  to.put(static_cast<uint64_t>(stop.hold_ns));
  to.put(static_cast<uint64_t>(stop.participants));
}

void put_site(StateWriter& to, const AppliedSite& site) {
  to.put(static_cast<uint32_t>(site.number));
  to.put(site.address);
  to.put(site.window.has_value());
  const Window window = site.window.value_or(Window{});
  to.put(window.begin);
  to.put(window.end);
  to.put(window.repeats);
  to.put(static_cast<uint32_t>(window.starts.size()));
  for (const uint64_t start : window.starts)
    to.put(start);
  to.put(static_cast<uint32_t>(site.where.size()));
  for (const auto& [gpa, length] : site.where) {
    to.put(gpa.value);
    to.put(length);
  }
  put_bytes(to, site.before);
  put_bytes(to, site.after);
}

void put_record(StateWriter& to, const Record& record, SteadyTime now) {
  put_text(to, write_manifest(record.manifest));
  put_author(to, record.author);
  put_time(to, record.at);
  to.put(static_cast<uint32_t>(record.forced.size()));
  for (const Check check : record.forced)
    put_text(to, name_of(check));
  to.put(static_cast<uint32_t>(record.overruled.size()));
  for (const Reason& reason : record.overruled) {
    put_text(to, name_of(reason.check));
    put_text(to, reason.text);
  }
  put_cost(to, record.cost);
  to.put(static_cast<uint32_t>(record.sites.size()));
  for (const AppliedSite& site : record.sites)
    put_site(to, site);
  to.put(record.confirm_by.has_value());
  const auto left = record.confirm_by.value_or(now) - now;
  to.put(static_cast<uint64_t>(std::max<int64_t>(0, std::chrono::nanoseconds(left).count())));
  put_text(to, record.revert_problem);
}

// What is wrong ends up in the reader, or, where it takes more than a literal to say, in `why`.
class LedgerReader {
public:
  LedgerReader(std::span<const std::byte> payload, SteadyTime now) : in_(payload), now_(now) {}

  [[nodiscard]] std::expected<LedgerState, vmm::Error> read() {
    LedgerState state;
    std::set<std::string> names;
    for (size_t left = count(kMaxRecords); one_more(left);) {
      state.applied.push_back(record());
      if (!names.insert(state.applied.back().manifest.name).second)
        in_.refuse("two patches of one name");
    }
    for (size_t left = count(Ledger::kMaxEvents); one_more(left);)
      state.history.push_back(event());
    const char* const wrong = in_.finish();
    if (wrong == nullptr && why_.empty())
      return state;
    return std::unexpected(
        vmm::Error{"restore", "the patch ledger", why_.empty() ? wrong : why_, vmm::Status::kRefused});
  }

private:
  // Counts one off. A count of more than there is is refused at the first that is missing; a reader that refused
  // has nothing.
  bool one_more(size_t& left) noexcept {
    if (left == 0)
      return false;
    in_.refuse_unless(in_.left() != 0, "it is too short");
    --left;
    return in_.left() != 0;
  }

  size_t count(size_t most) {
    const auto number = in_.get<uint32_t>();
    if (number > most) {
      in_.refuse("more than there can be");
      return 0;
    }
    return number;
  }
  std::string text(size_t most = kMaxTextBytes) {
    const auto bytes = in_.get_bytes(count(most));
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
  Bytes bytes(size_t most) {
    const auto taken = in_.get_bytes(count(most));
    return {taken.begin(), taken.end()};
  }
  std::chrono::system_clock::time_point time() {
    const std::chrono::nanoseconds since{static_cast<int64_t>(in_.get<uint64_t>() & 0x7fff'ffff'ffff'ffff)};
    return std::chrono::system_clock::time_point(
        std::chrono::duration_cast<std::chrono::system_clock::duration>(since));
  }
  Author author() {
    Author author;
    author.uid = in_.get<uint32_t>();
    author.pid = static_cast<pid_t>(in_.get<uint32_t>());
    return author;
  }
  Cost cost() {
    Cost cost;
    cost.attempts = in_.get<uint32_t>();
    cost.work_ns = static_cast<int64_t>(in_.get<uint64_t>());
    const bool stopped = in_.get_flag();
    StopTimes stop;
    stop.sequence = in_.get<uint64_t>();
    stop.gather_ns = static_cast<int64_t>(in_.get<uint64_t>());
    stop.hold_ns = static_cast<int64_t>(in_.get<uint64_t>());
    stop.participants = in_.get<uint64_t>();
    if (stopped)
      cost.stop = stop;
    return cost;
  }
  Check check() {
    const auto known = check_named(text(64));
    if (!known)
      in_.refuse("a check that nobody knows");
    return known.value_or(Check::kTarget);
  }

  AppliedSite site(const Manifest& manifest) {
    AppliedSite site;
    site.number = in_.get<uint32_t>();
    site.address = in_.get<uint64_t>();
    const bool has_window = in_.get_flag();
    Window window;
    window.begin = in_.get<uint64_t>();
    window.end = in_.get<uint64_t>();
    window.repeats = in_.get_flag();
    for (size_t left = count(kMaxStarts); one_more(left);)
      window.starts.push_back(in_.get<uint64_t>());
    in_.refuse_unless(window.begin <= window.end, "a window that ends before it begins");
    if (has_window)
      site.window = std::move(window);
    uint64_t length = 0;
    for (size_t left = count(kMaxPieces); one_more(left);) {
      const vmm::Gpa gpa{in_.get<uint64_t>()};
      const auto piece = in_.get<uint64_t>();
      in_.refuse_unless(piece <= kMaxSiteBytes, "a piece that is too long");
      site.where.emplace_back(gpa, piece);
      length += piece;
    }
    site.before = bytes(kMaxSiteBytes);
    site.after = bytes(kMaxSiteBytes);
    if (site.number == 0 || site.number > manifest.writes.size()) {
      in_.refuse("a site that its patch does not have");
      return site;
    }
    const Write& write = manifest.writes[site.number - 1];
    site.place = write.at;
    site.kind = write.kind;
    const size_t size = write.size();
    in_.refuse_unless(length == size && site.before.size() == size && site.after.size() == size,
                      "a site of another length than its patch has it");
    return site;
  }

  Record record() {
    Record record;
    auto manifest = read_manifest("restore", text());
    if (!manifest) {
      in_.refuse("a manifest");
      if (why_.empty())
        why_ = manifest.error().text();
      return record;
    }
    record.manifest = *std::move(manifest);
    record.author = author();
    record.at = time();
    for (size_t left = count(kCheckCount); one_more(left);)
      record.forced.push_back(check());
    for (size_t left = count(kMaxRecords); one_more(left);) {
      const Check of = check();
      record.overruled.push_back({of, text()});
    }
    record.cost = cost();
    for (size_t left = count(kMaxWrites); one_more(left);)
      record.sites.push_back(site(record.manifest));
    in_.refuse_unless(record.sites.size() == record.manifest.writes.size(), "a patch without all of its sites");
    const bool waits = in_.get_flag();
    constexpr uint64_t kLongest = 24ULL * 3600 * 1'000'000'000;
    const auto left = in_.get<uint64_t>();
    in_.refuse_unless(left <= kLongest, "a confirmation that nobody waits for so long");
    if (waits)
      record.confirm_by = now_ + std::chrono::nanoseconds(std::min(left, kLongest));
    record.revert_problem = text();
    return record;
  }

  Event event() {
    Event event;
    event.what = text(256);
    event.patch = text(256);
    event.author = author();
    event.at = time();
    event.cost = cost();
    return event;
  }

  StateReader in_;
  SteadyTime now_;
  std::string why_;
};

} // namespace

vmm::StateSection save_ledger(const std::vector<Ledger::Entry>& applied, const std::vector<Event>& history,
                              SteadyTime now) {
  StateWriter to;
  to.put(static_cast<uint32_t>(applied.size()));
  for (const Ledger::Entry& record : applied)
    put_record(to, *record, now);
  to.put(static_cast<uint32_t>(history.size()));
  for (const Event& event : history) {
    put_text(to, event.what);
    put_text(to, event.patch);
    put_author(to, event.author);
    put_time(to, event.at);
    put_cost(to, event.cost);
  }
  return {static_cast<uint32_t>(vmm::StateKind::kPatchLedger), kVersion, 0, to.take()};
}

std::expected<LedgerState, vmm::Error> restore_ledger(const vmm::StateSection& section, SteadyTime now) {
  if (section.version != kVersion)
    return std::unexpected(
        vmm::Error{"restore", "the patch ledger",
                   "version " + std::to_string(section.version) + ", which this program does not know",
                   vmm::Status::kRefused});
  return LedgerReader(section.payload, now).read();
}

} // namespace stopvisor::patch
