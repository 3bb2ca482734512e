// SPDX-License-Identifier: Apache-2.0
#include "tools/snapshot/digest.h"

#include <sodium.h>
#include <sys/random.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>

#define XXH_INLINE_ALL // NOLINT: the library's own switch, for code without a call
#include <xxhash.h>

#include "vmm/boot/file.h"

namespace stopvisor::snapshot {
namespace {

static_assert(sizeof(Hash) == crypto_generichash_BYTES);
static_assert(sizeof(Hash) == crypto_generichash_KEYBYTES);

constexpr size_t kLabelBytes = 16;

std::string_view text_of(Label label) noexcept {
  switch (label) {
  case Label::kSeal:
    return "stopvisor.seal";
  case Label::kMachine:
    return "stopvisor.fdt";
  case Label::kState:
    return "stopvisor.state";
  case Label::kIndex:
    return "stopvisor.index";
  case Label::kExtent:
    return "stopvisor.extent";
  case Label::kDiskIndex:
    return "stopvisor.diskix";
  case Label::kDisk:
    return "stopvisor.disk";
  }
  std::abort(); // no other label
}

const unsigned char* raw(const void* bytes) noexcept {
  return static_cast<const unsigned char*>(bytes);
}

// One MAC that is being made.
class Keyed {
public:
  // libsodium finds out what the processor can do: once, or its slowest code is what runs.
  Keyed(const Hash& key, Label label, const Id& id) noexcept {
    static const int ready = ::sodium_init();
    (void)ready;
    crypto_generichash_init(&state_, raw(key.data()), key.size(), sizeof(Hash));
    std::array<char, kLabelBytes> name{};
    std::ranges::copy(text_of(label), name.begin());
    add(name.data(), name.size());
    add(id.data(), id.size());
  }
  void add(const void* bytes, size_t size) noexcept { crypto_generichash_update(&state_, raw(bytes), size); }
  [[nodiscard]] Hash finish() noexcept {
    Hash mac;
    crypto_generichash_final(&state_, reinterpret_cast<unsigned char*>(mac.data()), mac.size());
    return mac;
  }

private:
  crypto_generichash_state state_;
};

} // namespace

uint64_t xxh3_of(ByteSpan bytes) noexcept {
  return XXH3_64bits(bytes.data(), bytes.size());
}

uint64_t xxh3_of_pages(const std::byte* extent, const PageSet& pages) noexcept {
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  pages.for_runs([&](size_t first, size_t count) {
    XXH3_64bits_update(&state, extent + first * kPageBytes, count * kPageBytes);
    return true;
  });
  return XXH3_64bits_digest(&state);
}

Hash digest_of(ByteSpan bytes) noexcept {
  Hash digest;
  crypto_generichash(reinterpret_cast<unsigned char*>(digest.data()), digest.size(), raw(bytes.data()),
                     bytes.size(), nullptr, 0);
  return digest;
}

bool same_hash(const Hash& one, const Hash& other) noexcept {
  return ::sodium_memcmp(one.data(), other.data(), one.size()) == 0;
}

Id random_id() noexcept {
  Id id{};
  ::randombytes_buf(id.data(), id.size());
  return id;
}

std::string hex_text(ByteSpan bytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  text.reserve(bytes.size() * 2);
  for (const std::byte byte : bytes) {
    text += kDigits[std::to_integer<unsigned>(byte) >> 4];
    text += kDigits[std::to_integer<unsigned>(byte) & 15];
  }
  return text;
}

std::string hex_text(uint64_t number) {
  std::array<std::byte, 8> bytes{};
  for (size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = std::byte(number >> (56 - 8 * i));
  return hex_text(bytes);
}

bool from_hex(std::string_view text, std::span<std::byte> to) {
  if (text.size() != to.size() * 2 || text.find_first_of("ABCDEF") != std::string_view::npos)
    return false;
  for (size_t i = 0; i < to.size(); ++i) {
    uint8_t value = 0;
    const char* const end = text.data() + i * 2 + 2;
    if (const auto [stop, fault] = std::from_chars(end - 2, end, value, 16); stop != end || fault != std::errc{})
      return false;
    to[i] = std::byte(value);
  }
  return true;
}

std::expected<Id, vmm::Error> parse_id(std::string_view operation, std::string_view text) {
  Id id{};
  if (!from_hex(text, id))
    return std::unexpected(vmm::Error{std::string(operation), std::string(text.substr(0, 60)),
                                      "is no id: one has 32 hexadecimal digits, as 'snapshot info' shows it",
                                      vmm::Status::kUsage});
  return id;
}

Key::~Key() {
  ::sodium_memzero(bytes_.data(), bytes_.size());
}

std::expected<Key, vmm::Error> Key::read(std::string_view operation, const std::string& path) {
  auto file = vmm::read_file(operation, path, 4096);
  if (!file)
    return std::unexpected(std::move(file.error()));
  const ByteSpan found = file->bytes();
  Hash bytes;
  if (found.size() == bytes.size()) {
    std::ranges::copy(found, bytes.begin());
    return Key(bytes);
  }
  std::string_view text(reinterpret_cast<const char*>(found.data()), found.size());
  if (text.ends_with('\n'))
    text.remove_suffix(1);
  std::string digits(text);
  std::ranges::transform(digits, digits.begin(),
                         [](char c) { return c >= 'A' && c <= 'F' ? char(c + 'a' - 'A') : c; });
  const bool is_key = from_hex(digits, bytes);
  ::sodium_memzero(digits.data(), digits.size());
  if (!is_key)
    return std::unexpected(vmm::Error{std::string(operation), path,
                                      "is no key: one has 32 bytes, or 64 hexadecimal digits",
                                      vmm::Status::kUsage});
  return Key(bytes);
}

Hash Key::mac(Label label, const Id& id, ByteSpan content) const noexcept {
  Keyed keyed(bytes_, label, id);
  keyed.add(content.data(), content.size());
  return keyed.finish();
}

Hash Key::extent_mac(const Id& id, uint64_t number, const Extent& entry, const std::byte* extent) const noexcept {
  Keyed keyed(bytes_, Label::kExtent, id);
  keyed.add(&number, sizeof(number));
  keyed.add(&entry.data, sizeof(entry.data));
  keyed.add(&entry.zeros, sizeof(entry.zeros));
  entry.data.for_runs([&](size_t first, size_t count) {
    keyed.add(extent + first * kPageBytes, count * kPageBytes);
    return true;
  });
  return keyed.finish();
}

Hash Key::disk_mac(const Id& id, uint64_t disk, uint64_t number, ByteSpan extent) const noexcept {
  Keyed keyed(bytes_, Label::kDisk, id);
  keyed.add(&disk, sizeof(disk));
  keyed.add(&number, sizeof(number));
  keyed.add(extent.data(), extent.size());
  return keyed.finish();
}

} // namespace stopvisor::snapshot
