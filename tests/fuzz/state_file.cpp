// SPDX-License-Identifier: Apache-2.0
// state.bin of a snapshot: what is taken is what was written.
#include <cstring>

#include "tests/fuzz/fuzzer.h"
#include "tools/snapshot/state_file.h"

namespace stopvisor::fuzz {
namespace {

constexpr unsigned kChecksumsAgree = 1; // else hardly anything would get past them

void agree(Bytes& file) {
  size_t at = sizeof(snapshot::StateHeader);
  while (at + sizeof(snapshot::SectionHeader) <= file.size()) {
    snapshot::SectionHeader header;
    std::memcpy(&header, file.data() + at, sizeof(header));
    at += sizeof(header);
    if (header.length > file.size() - at)
      return;
    header.xxh3 = snapshot::xxh3_of(ByteSpan(file).subspan(at, header.length));
    std::memcpy(file.data() + at - sizeof(header), &header, sizeof(header));
    at += (header.length + 7) / 8 * 8;
  }
}

} // namespace

std::vector<Bytes> seeds() {
  const snapshot::Sections sections{
      {0x100, 1, 0, Bytes(5, std::byte(1))}, {0x100, 1, 1, {}}, {0x101, 2, 0, Bytes(16, std::byte(9))}};
  const auto whole = snapshot::write_state("seed", "state.bin", sections);
  const auto empty = snapshot::write_state("seed", "state.bin", {});
  must(whole && empty, "the seeds");
  return {chosen(0, *whole), chosen(kChecksumsAgree, *whole), chosen(0, *empty)};
}

void try_one(ByteSpan input) {
  const Choice choice = choice_of(input);
  Bytes bytes(choice.rest.begin(), choice.rest.end());
  if (choice.first & kChecksumsAgree)
    agree(bytes);
  const auto taken = snapshot::read_state("fuzz", "state.bin", bytes);
  if (!taken)
    return;
  const auto again = snapshot::write_state("fuzz", "state.bin", *taken);
  must(again && *again == bytes, "a state that is another one");
}

} // namespace stopvisor::fuzz
