// SPDX-License-Identifier: Apache-2.0
// The ledger of patches in a machine's state: what is taken has the lengths its patches say, and is saved the same.
#include <memory>

#include "tests/fuzz/fuzzer.h"
#include "tools/patch/ledger_state.h"

namespace stopvisor::fuzz {
namespace {

constexpr patch::SteadyTime kNow{};

vmm::StateSection section_of(ByteSpan payload) {
  return {static_cast<uint32_t>(vmm::StateKind::kPatchLedger), 1, 0, {payload.begin(), payload.end()}};
}

Bytes saved(const patch::LedgerState& state) {
  std::vector<patch::Ledger::Entry> applied;
  for (const patch::Record& record : state.applied)
    applied.push_back(std::make_shared<const patch::Record>(record));
  return patch::save_ledger(applied, state.history, kNow).payload;
}

patch::LedgerState example() {
  auto manifest = patch::read_manifest(
      "seed", R"({"format": 1, "name": "fix", "version": "7", "target": {"any": true}, "writes": [
              {"at": "gpa:0x800000", "kind": "data", "expect": "0000", "bytes": "1122"}]})");
  must(manifest.has_value(), "the seeds");
  patch::Record record;
  record.manifest = *std::move(manifest);
  record.author = {.uid = 1, .pid = 2};
  record.forced = {patch::Check::kTarget};
  record.overruled = {{patch::Check::kTarget, "why"}};
  record.cost.stop.emplace();
  record.confirm_by = kNow + std::chrono::seconds(9);
  patch::AppliedSite site;
  site.number = 1;
  site.address = 0x800000;
  site.window = patch::Window{.begin = 0x800000, .end = 0x800010, .starts = {0x800000, 0x800004}};
  site.where = {{vmm::Gpa{0x800000}, 2}};
  site.before = {std::byte(0), std::byte(0)};
  site.after = {std::byte(0x11), std::byte(0x22)};
  record.sites = {site};
  return {.applied = {record}, .history = {{.what = "apply", .patch = "fix", .author = {}, .at = {}, .cost = {}}}};
}

} // namespace

std::vector<Bytes> seeds() {
  patch::LedgerState two = example();
  two.applied.push_back(two.applied.front());
  two.applied.back().manifest.name = "other";
  return {saved({}), saved(example()), saved(two)};
}

void try_one(ByteSpan input) {
  const auto state = patch::restore_ledger(section_of(input), kNow);
  if (!state)
    return;
  for (const patch::Record& record : state->applied)
    for (const patch::AppliedSite& site : record.sites) {
      must(site.number >= 1 && site.number <= record.manifest.writes.size(), "a site that its patch does not have");
      const size_t size = record.manifest.writes[site.number - 1].size();
      must(site.before.size() == size && site.after.size() == size, "a site of another length");
    }
  const Bytes once = saved(*state);
  const auto again = patch::restore_ledger(section_of(once), kNow);
  must(again.has_value(), "a ledger that is not read back");
  must(saved(*again) == once, "a ledger that is another one when it is read back");
}

} // namespace stopvisor::fuzz
