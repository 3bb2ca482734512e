// SPDX-License-Identifier: Apache-2.0
// A peer that reads, slowly, is not one that does not read.
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "tools/migrate/link.h"

namespace stopvisor::migrate {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kPatience{1500};
constexpr milliseconds kEvery{100}; // with kPiece: slower than a socket's poll() has it, faster than patience
constexpr size_t kPiece = 8 << 10;
constexpr size_t kMuch = 600 << 10;

TEST(Link, APeerThatReadsSlowlyIsWaitedFor) {
  std::array<int, 2> ends{-1, -1};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
  Link link("test", "slow", vmm::UniqueFd(ends[0]));
  const vmm::UniqueFd peer(ends[1]);
  link.set_patience(kPatience);
  std::jthread reads([&] {
    std::vector<std::byte> piece(kPiece);
    const auto slowly_until = std::chrono::steady_clock::now() + 3 * kPatience;
    while (::read(peer.get(), piece.data(), piece.size()) > 0)
      if (std::chrono::steady_clock::now() < slowly_until)
        std::this_thread::sleep_for(kEvery);
  });
  std::vector<std::byte> bytes(kMuch);
  const std::array<iovec, 1> parts{{{bytes.data(), bytes.size()}}};
  const auto written = link.write(parts);
  EXPECT_TRUE(written) << written.error().message();
  ::shutdown(ends[0], SHUT_WR);
}

} // namespace
} // namespace stopvisor::migrate
