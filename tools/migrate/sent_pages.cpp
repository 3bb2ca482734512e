// SPDX-License-Identifier: Apache-2.0
// What was sent of each page last: 16 bytes a page, of a keyed hash.
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <vector>

#include "tools/migrate/checksum.h"
#include "tools/migrate/page_batch.h"

namespace stopvisor::migrate {

struct SentPages::Parts {
  explicit Parts(uint64_t pages) : hashes(pages) {
    if (::getentropy(secret.data(), secret.size()) != 0)
      std::abort(); // it has no reason to fail: Linux 3.17, up to 256 bytes
  }
  std::array<std::byte, XXH3_SECRET_DEFAULT_SIZE> secret;
  Hash zeros;
  std::vector<Hash> hashes;
};
static_assert(XXH3_SECRET_DEFAULT_SIZE <= 256 && XXH3_SECRET_DEFAULT_SIZE >= XXH3_SECRET_SIZE_MIN);

SentPages::SentPages(uint64_t pages) : parts_(std::make_unique<Parts>(pages)) {
  const std::array<std::byte, kPageBytes> zeros{};
  parts_->zeros = hash_of(zeros);
}
SentPages::~SentPages() = default;

SentPages::Hash SentPages::hash_of(std::span<const std::byte, kPageBytes> content) const noexcept {
  const XXH128_hash_t hash =
      XXH3_128bits_withSecret(content.data(), content.size(), parts_->secret.data(), parts_->secret.size());
  return {.low = hash.low64 | 1, .high = hash.high64};
}

const SentPages::Hash& SentPages::hash_of_zeros() const noexcept {
  return parts_->zeros;
}

bool SentPages::unchanged(uint64_t number, const Hash& hash) noexcept {
  if (number >= parts_->hashes.size())
    return false;
  Hash& last = parts_->hashes[number];
  if (last == hash)
    return true;
  last = hash;
  return false;
}

bool SentPages::unchanged(uint64_t number, std::span<const std::byte, kPageBytes> content) noexcept {
  return unchanged(number, hash_of(content));
}

} // namespace stopvisor::migrate
