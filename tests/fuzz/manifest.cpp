// SPDX-License-Identifier: Apache-2.0
// manifest.json of a snapshot: what is taken is written, and read again, as the same.
#include "tests/fuzz/fuzzer.h"
#include "tests/fuzz/snapshot_seeds.h"

namespace stopvisor::fuzz {

std::vector<Bytes> seeds() {
  std::vector<Bytes> all;
  for (unsigned kind = 0; kind < kKinds; ++kind)
    all.push_back(bytes_of(snapshot::write_manifest(manifest_of(kind))));
  snapshot::Manifest disks = manifest_of(kFull);
  disks.disks = {
      {.path = "/srv/a.img", .bytes = 5 << 20, .changed_unix_ns = 1, .index = std::nullopt},
      {.path = "/srv/b.img", .read_only = true, .bytes = 4096, .changed_unix_ns = 0, .index = std::nullopt}};
  disks.disks[0].index.emplace();
  disks.disks[0].index->bytes = sizeof(snapshot::DiskIndexHeader) + 5 * sizeof(snapshot::DiskExtent);
  all.push_back(bytes_of(snapshot::write_manifest(disks)));
  return all;
}

void try_one(ByteSpan input) {
  const auto manifest = snapshot::read_manifest("fuzz", "manifest.json", text_of(input));
  if (!manifest)
    return;
  const std::string text = snapshot::write_manifest(*manifest);
  const auto again = snapshot::read_manifest("fuzz", "manifest.json", text);
  must(again.has_value(), "a manifest that is not read back");
  must(snapshot::write_manifest(*again) == text, "a manifest that is another one when it is read back");
}

} // namespace stopvisor::fuzz
