// SPDX-License-Identifier: Apache-2.0
// Opening a tap: what it is set to, and what a user is told where there is none to be had.
#include "vmm/tap.h"

#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <vector>

#include <gtest/gtest.h>

#include "tests/unit/net/own_network.h"

namespace stopvisor::vmm {
namespace {

using testing::HostTap;
using testing::WithoutRights;

constexpr short kTapFlags = IFF_TAP | IFF_NO_PI;

class TapTest : public ::testing::Test {
protected:
  void SetUp() override {
    if (!testing::why_no_taps().empty())
      GTEST_SKIP() << testing::why_no_taps();
  }
};

std::string refusal(const std::string& name, Status status) {
  const auto tap = Tap::open(name);
  if (tap)
    return "opened";
  EXPECT_EQ(tap.error().status, status);
  return tap.error().message();
}

TEST_F(TapTest, IsOpenedWithHeadersAndOneQueueWhereItExists) {
  HostTap host("sv0", kTapFlags);
  host.close();
  testing::set_mtu("sv0", 9000);
  const auto tap = Tap::open("sv0");
  ASSERT_TRUE(tap) << tap.error().message();
  EXPECT_EQ(tap->name(), "sv0");
  EXPECT_EQ(tap->mtu(), 9000u);
  EXPECT_FALSE(tap->is_new());
  ifreq what{};
  ASSERT_EQ(::ioctl(tap->fd(), TUNGETIFF, &what), 0);
  EXPECT_TRUE((what.ifr_flags & IFF_VNET_HDR) != 0);
  EXPECT_EQ(what.ifr_flags & (IFF_TAP | IFF_NO_PI | IFF_MULTI_QUEUE), IFF_TAP | IFF_NO_PI);
  int header_bytes = 0;
  ASSERT_EQ(::ioctl(tap->fd(), TUNGETVNETHDRSZ, &header_bytes), 0);
  EXPECT_EQ(header_bytes, 12);
}

TEST_F(TapTest, IsMadeWhereThereIsNoneAndGoesWithItsDescriptor) {
  {
    const auto tap = Tap::open("sv0");
    ASSERT_TRUE(tap) << tap.error().message();
    EXPECT_TRUE(tap->is_new());
    EXPECT_EQ(tap->mtu(), 1500u);
    EXPECT_NE(::if_nametoindex("sv0"), 0u);
  }
  EXPECT_EQ(::if_nametoindex("sv0"), 0u);
}

TEST_F(TapTest, TakesTheOffloadsTheKernelKnowsAndNoOthers) {
  const auto tap = Tap::open("sv0");
  ASSERT_TRUE(tap) << tap.error().message();
  EXPECT_TRUE(tap->set_offloads(TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN));
  EXPECT_TRUE(tap->set_offloads(0));
  EXPECT_FALSE(tap->set_offloads(1U << 30));
}

TEST_F(TapTest, ThatAnotherProgramHasIsRefusedAsBusy) {
  const auto first = Tap::open("sv0");
  ASSERT_TRUE(first) << first.error().message();
  EXPECT_EQ(refusal("sv0", Status::kBusy), "open tap: sv0: is used by another program");
}

TEST_F(TapTest, WithSeveralQueuesIsRefusedByThatName) {
  HostTap host("sv0", kTapFlags | IFF_MULTI_QUEUE);
  host.close();
  EXPECT_EQ(refusal("sv0", Status::kFailed),
            "open tap: sv0: is a tap with several queues; make one without multi_queue");
}

TEST_F(TapTest, ThatIsATunIsRefusedByThatName) {
  HostTap host("sv0", IFF_TUN | IFF_NO_PI);
  host.close();
  EXPECT_EQ(refusal("sv0", Status::kFailed), "open tap: sv0: is a tun (IP packets), not a tap (Ethernet frames)");
}

TEST_F(TapTest, ThatIsAnotherKindOfInterfaceIsRefusedByThatName) {
  EXPECT_EQ(refusal("lo", Status::kFailed), "open tap: lo: is an interface, but no tap");
}

TEST_F(TapTest, ThatIsMissingIsRefusedWithTheCommandThatMakesItWhereTheUserMayNot) {
  const WithoutRights now;
  EXPECT_EQ(
      refusal("sv0", Status::kFailed),
      "open tap: sv0: no such interface, and this process may not make one (CAP_NET_ADMIN); as root: ip tuntap "
      "add dev sv0 mode tap user " +
          std::to_string(::geteuid()) + " and ip link set sv0 up");
}

TEST_F(TapTest, OfAnotherUserIsRefusedWithTheCommandThatGivesIt) {
  // Not to be had for a user namespace that has one user: nobody else could own it.
  HostTap host("sv0", kTapFlags);
  if (::ioctl(host.fd(), TUNSETOWNER, 12345) != 0)
    GTEST_SKIP() << "this user namespace knows no second user";
  host.close();
  const WithoutRights now;
  EXPECT_EQ(
      refusal("sv0", Status::kFailed),
      "open tap: sv0: belongs to another user; as root: ip tuntap del dev sv0 mode tap, then ip tuntap add dev "
      "sv0 mode tap user " +
          std::to_string(::geteuid()));
}

TEST_F(TapTest, OfTheUserIsOpenedWithoutFurtherRights) {
  HostTap host("sv0", kTapFlags, int(::geteuid()));
  host.close();
  const WithoutRights now;
  EXPECT_TRUE(Tap::open("sv0"));
}

// Twelve bytes of header that ask for nothing, then the frame.
std::string with_header(const std::string& frame) {
  return std::string(Tap::kHeaderBytes, '\0') + frame;
}

FramePort::Outcome send(const Tap& tap, std::string bytes) {
  const iovec whole{bytes.data(), bytes.size()};
  return tap.send({&whole, 1});
}

// The next frame of ours that the tap gives; others (the host's kernel looks for neighbours) are passed by.
std::string receive(const Tap& tap) {
  std::vector<std::byte> buffer(1 << 17);
  for (;;) {
    pollfd entry{tap.fd(), POLLIN, 0};
    if (::poll(&entry, 1, 10'000) != 1)
      return "nothing";
    const auto got = tap.receive(buffer);
    if (got.outcome != FramePort::Outcome::kDone)
      return "outcome " + std::to_string(int(got.outcome));
    std::string frame(reinterpret_cast<const char*>(buffer.data()), got.bytes);
    if (frame.size() > 26 && frame.substr(24, 2) == testing::frame_of("").substr(12))
      return frame;
  }
}

TEST_F(TapTest, CarriesFramesBothWays) {
  const auto tap = Tap::open("sv0");
  ASSERT_TRUE(tap) << tap.error().message();
  testing::set_up("sv0", true);
  const testing::Wire wire("sv0");
  const std::string there = testing::frame_of("from the host" + std::string(50, 'x'));
  wire.send(there);
  EXPECT_EQ(receive(*tap), with_header(there));
  const std::string back = testing::frame_of("from the guest" + std::string(50, 'y'));
  EXPECT_EQ(send(*tap, with_header(back)), FramePort::Outcome::kDone);
  EXPECT_EQ(wire.receive(), back);
}

TEST_F(TapTest, HasNothingToReadUntilThereIsAFrame) {
  const auto tap = Tap::open("sv0");
  ASSERT_TRUE(tap) << tap.error().message();
  std::array<std::byte, 64> buffer{};
  EXPECT_EQ(tap->receive(buffer).outcome, FramePort::Outcome::kLater);
}

TEST_F(TapTest, RefusesWhatIsNoFrameAndEverythingWhileItIsDown) {
  const auto tap = Tap::open("sv0");
  ASSERT_TRUE(tap) << tap.error().message();
  EXPECT_EQ(send(*tap, with_header(testing::frame_of("x"))), FramePort::Outcome::kRefused);
  testing::set_up("sv0", true);
  EXPECT_EQ(send(*tap, "short"), FramePort::Outcome::kRefused);
  EXPECT_EQ(send(*tap, with_header("")), FramePort::Outcome::kRefused);
  std::string header(Tap::kHeaderBytes, '\0');
  header[1] = 77; // gso_type that there is not
  EXPECT_EQ(send(*tap, header + testing::frame_of("x")), FramePort::Outcome::kRefused);
  EXPECT_EQ(send(*tap, with_header(testing::frame_of("x"))), FramePort::Outcome::kDone);
}

TEST_F(TapTest, IsGoneWhenItsInterfaceIsRemoved) {
  const auto tap = Tap::open("sv0");
  ASSERT_TRUE(tap) << tap.error().message();
  testing::set_up("sv0", true);
  testing::remove_interface("sv0");
  std::array<std::byte, 64> buffer{};
  EXPECT_EQ(tap->receive(buffer).outcome, FramePort::Outcome::kGone);
  EXPECT_EQ(send(*tap, with_header(testing::frame_of("x"))), FramePort::Outcome::kGone);
  EXPECT_FALSE(tap->set_offloads(0));
}

TEST(TapName, IsRefusedWhereNoInterfaceCanHaveIt) {
  EXPECT_EQ(refusal("abcdefghijklmnop", Status::kUsage),
            "open tap: abcdefghijklmnop: is too long for the name of an interface (at most 15 bytes)");
  EXPECT_EQ(refusal("", Status::kUsage), "open tap: needs the name of an interface");
  for (const char* name : {"a/b", "a b", "a:b", "tap%d", ".", "..", "a\nb"})
    EXPECT_EQ(refusal(name, Status::kUsage),
              "open tap: " + std::string(name) + ": cannot be the name of an interface");
  EXPECT_TRUE(check_interface_name("abcdefghijklmno"));
}

} // namespace
} // namespace stopvisor::vmm
