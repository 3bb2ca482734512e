// SPDX-License-Identifier: Apache-2.0
// Checksums of snapshots: XXH3 against accidents, BLAKE2b with a key against whoever can write the directory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "tools/snapshot/format.h"
#include "vmm/error.h"

namespace stopvisor::snapshot {

using ByteSpan = std::span<const std::byte>;

[[nodiscard]] inline ByteSpan bytes_of(std::string_view text) noexcept {
  return std::as_bytes(std::span(text.data(), text.size()));
}

[[nodiscard]] uint64_t xxh3_of(ByteSpan bytes) noexcept;
// Of the pages of `pages`, one after the other; `extent` begins with page 0.
[[nodiscard]] uint64_t xxh3_of_pages(const std::byte* extent, const PageSet& pages) noexcept;
[[nodiscard]] Hash digest_of(ByteSpan bytes) noexcept;
[[nodiscard]] bool same_hash(const Hash& one, const Hash& other) noexcept; // takes as long whether or not
[[nodiscard]] Id random_id() noexcept;
// As users write it: 32 hexadecimal digits. RETURNS: kUsage.
[[nodiscard]] std::expected<Id, vmm::Error> parse_id(std::string_view operation, std::string_view text);

[[nodiscard]] std::string hex_text(ByteSpan bytes);
[[nodiscard]] std::string hex_text(uint64_t number); // 16 digits
// RETURNS: false where `text` is anything but two digits a byte, in lower case: each value has one spelling.
[[nodiscard]] bool from_hex(std::string_view text, std::span<std::byte> to);

// What each MAC is of.
enum class Label { kSeal, kMachine, kState, kIndex, kExtent, kDiskIndex, kDisk };

// A snapshot's key. Its bytes are wiped when it goes.
class Key {
public:
  explicit Key(const Hash& bytes) noexcept : bytes_(bytes) {}
  ~Key();
  Key(const Key&) = default;
  Key& operator=(const Key&) = default;

  // CONTEXT: any thread; blocks on the file. RETURNS: kFailed where it cannot be read, kUsage where it is no key.
  [[nodiscard]] static std::expected<Key, vmm::Error> read(std::string_view operation, const std::string& path);

  [[nodiscard]] const Hash& bytes() const noexcept { return bytes_; } // to hand it on
  [[nodiscard]] Hash mac(Label label, const Id& id, ByteSpan content) const noexcept;
  [[nodiscard]] Hash extent_mac(const Id& id, uint64_t number, const Extent& entry,
                                const std::byte* extent) const noexcept;
  // Of one extent of a disk's image.
  [[nodiscard]] Hash disk_mac(const Id& id, uint64_t disk, uint64_t number, ByteSpan extent) const noexcept;

private:
  Hash bytes_;
};

} // namespace stopvisor::snapshot
