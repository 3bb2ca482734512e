// SPDX-License-Identifier: Apache-2.0
// The seal of a snapshot: each has one spelling.
#include "tests/fuzz/fuzzer.h"
#include "tools/snapshot/manifest.h"

namespace stopvisor::fuzz {

std::vector<Bytes> seeds() {
  snapshot::Hash hash{};
  hash.fill(std::byte(0xa5));
  return {bytes_of(snapshot::write_seal({.digest = hash, .mac = std::nullopt})),
          bytes_of(snapshot::write_seal({.digest = hash, .mac = hash}))};
}

void try_one(ByteSpan input) {
  const auto seal = snapshot::read_seal("fuzz", "seal", text_of(input));
  must(!seal || snapshot::write_seal(*seal) == text_of(input), "a seal of another spelling");
}

} // namespace stopvisor::fuzz
