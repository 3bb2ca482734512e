// SPDX-License-Identifier: Apache-2.0
// Manifests of small snapshots of every kind, for the fuzzers of their files.
#pragma once

#include "tools/snapshot/manifest.h"

namespace stopvisor::fuzz {

enum Kind : unsigned { kFull = 0, kIncremental = 1, kSealed = 2, kCompressed = 4, kKinds = 8 };

// Two regions, of three extents together; every page is zero, or the parent's.
[[nodiscard]] inline snapshot::Manifest manifest_of(unsigned kind) {
  snapshot::Manifest manifest;
  manifest.id.fill(std::byte(7));
  manifest.vm = "vm1";
  manifest.created_unix_ns = 1'795'427'400'000'000'000;
  manifest.host = {{"kernel", "Linux 6.1"}};
  manifest.patches = {{"fix", "1"}};
  manifest.regions = {{.gpa = 0, .bytes = (1 << 20) + 8192}, {.gpa = 1ULL << 32, .bytes = 12288}};
  snapshot::lay_out(manifest.regions);
  const uint64_t pages = (manifest.regions[0].bytes + manifest.regions[1].bytes) / snapshot::kPageBytes;
  (kind & kIncremental ? manifest.parent_pages : manifest.zero_pages) = pages;
  if (kind & kIncremental)
    manifest.parent = {.id = manifest.id, .digest = {}, .place = "../monday"};
  manifest.sealed = (kind & kSealed) != 0;
  manifest.encoding = kind & kCompressed ? snapshot::Encoding::kZstd : snapshot::Encoding::kRaw;
  manifest.file_bytes = kind & kCompressed ? 0 : snapshot::span_of(manifest.regions);
  manifest.index.bytes = sizeof(snapshot::IndexHeader) +
                         snapshot::extents_of(snapshot::span_of(manifest.regions)) * sizeof(snapshot::Extent);
  return manifest;
}

} // namespace stopvisor::fuzz
