// SPDX-License-Identifier: Apache-2.0
// Two ends of a link, for tests.
#pragma once

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <expected>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "tools/migrate/link.h"
#include "vmm/unique_fd.h"

namespace stopvisor::migrate::testing {

using Bytes = std::vector<std::byte>;

// Long enough for whoever is slow: a test that comes to it fails by other means.
inline constexpr std::chrono::milliseconds kLong{60'000};

inline Bytes bytes_of(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text.data(), text.size()));
  return {bytes.begin(), bytes.end()};
}
inline std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
// Bytes that no two neighbouring pieces have alike.
inline Bytes pattern(size_t size, uint64_t seed = 1) {
  Bytes bytes(size);
  uint64_t value = seed;
  for (size_t at = 0; at < size; at += sizeof value) {
    value = value * 6364136223846793005 + 1442695040888963407;
    const uint64_t mixed = value ^ value >> 29;
    std::memcpy(bytes.data() + at, &mixed, std::min(size - at, sizeof mixed));
  }
  return bytes;
}
// What a byte is changed with: each bit, some of them, all of them.
inline constexpr std::array<uint8_t, 10> kChanges{1, 2, 4, 8, 16, 32, 64, 128, 0x55, 0xff};

struct SocketPair {
  SocketPair() {
    std::array<int, 2> ends{-1, -1};
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
    one.reset(ends[0]);
    other.reset(ends[1]);
  }
  vmm::UniqueFd one;
  vmm::UniqueFd other;
};

// Two links that are each other's peers.
struct Pair {
  explicit Pair(SocketPair sockets = {})
      : one(std::make_unique<Link>("one", "other", std::move(sockets.one))),
        other(std::make_unique<Link>("other", "one", std::move(sockets.other))) {
    one->set_patience(kLong);
    other->set_patience(kLong);
  }
  std::unique_ptr<Link> one;
  std::unique_ptr<Link> other;
};

inline std::expected<void, vmm::Error> write(Link& link, std::span<const std::byte> bytes) {
  const iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
  return link.write(std::span(&part, 1));
}
inline std::expected<void, vmm::Error> write(Link& link, std::string_view text) {
  return write(link, std::as_bytes(std::span(text.data(), text.size())));
}
// RETURNS: what was read, or the error's message.
inline std::string read(Link& link, size_t size) {
  Bytes bytes(size);
  const auto done = link.read(bytes);
  return done ? text_of(bytes) : done.error().message();
}

// A folder that goes with the test.
class Folder {
public:
  Folder() {
    const char* const root = std::getenv("TMPDIR");
    path_ = std::string(root != nullptr ? root : "/tmp") + "/stopvisor-migrate-XXXXXX";
    EXPECT_NE(::mkdtemp(path_.data()), nullptr);
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  [[nodiscard]] std::string file(const std::string& name) const { return path_ + "/" + name; }

private:
  std::string path_;
};

} // namespace stopvisor::migrate::testing
