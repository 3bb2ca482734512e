// SPDX-License-Identifier: Apache-2.0
// The network device between a driver's queues and a port: every frame is in one place, whatever happens.
#include "vmm/virtio/net.h"

#include <linux/if_tun.h>
#include <poll.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/unit/net/fake_port.h"
#include "tests/unit/net/guest_ring.h"
#include "tests/unit/net/own_network.h"
#include "vmm/tap.h"
#include "vmm/virtio/net_layout.h"

namespace stopvisor::vmm {
namespace {

using testing::Cable;
using testing::FakePort;
using testing::GuestRing;
using virtio::Net;
using virtio::Queue;

constexpr uint64_t kMemoryBytes = 64 << 20;
constexpr uint64_t kReceiveBase = 0x10'0000, kTransmitBase = 0x200'0000;
constexpr size_t kHeaderBytes = sizeof(virtio::net::Header);
constexpr uint64_t kUsual = virtio::net::kMac | virtio::net::kStatus | virtio::net::kMergeBuffers |
                            virtio::net::kChecksum | virtio::net::kHostTso4 | virtio::net::kGuestChecksum |
                            virtio::net::kGuestTso4;

std::string header(uint16_t buffers = 0, uint8_t flags = 0, uint8_t segmentation = 0) {
  virtio::net::Header fields{};
  fields.flags = flags;
  fields.segmentation = segmentation;
  fields.buffers = buffers;
  return {reinterpret_cast<const char*>(&fields), sizeof fields};
}

// A frame that differs from others, by its number, in every part of it.
std::string frame(size_t bytes, uint32_t number = 1) {
  std::string text(bytes, '\0');
  for (size_t at = 0; at < bytes; ++at)
    text[at] = char((size_t{31} * number + at * 7 + at / 256) & 0xff);
  return text;
}

// The device with a driver's queues around it, and no thread: a test makes the worker's turns itself.
struct Bench {
  explicit Bench(std::unique_ptr<FramePort> port, uint16_t size = 64, uint32_t mtu = Net::kUsualMtu)
      : net({"net0", *parse_mac("02:00:00:00:00:01"), mtu}, std::move(port)), receive(memory, kReceiveBase, size),
        transmit(memory, kTransmitBase, size) {
    net.on_config_change([this] { ++told_gone; });
    for (int count = 0; count < 2; ++count)
      queues.push_back(std::make_unique<Queue>(memory, written));
  }
  void start(uint64_t features = kUsual, bool event_index = false) {
    queues[0]->start(receive.layout(event_index));
    queues[1]->start(transmit.layout(event_index));
    net.start(features, queues);
  }
  // Turns until there is nothing to do. RETURNS: how many did something.
  int serve() {
    int turns = 0;
    while (net.serve(queues))
      if (++turns > 10'000)
        throw std::runtime_error("the device does not come to rest");
    return turns;
  }
  uint16_t link_status() const { return uint16_t(net.config()[6]); }

  GuestMemory memory = *GuestMemory::create(kMemoryBytes, MemoryBacking::kAnonymous);
  WrittenPages written{memory.slots()};
  Net net;
  GuestRing receive;
  GuestRing transmit;
  std::vector<std::unique_ptr<Queue>> queues;
  int told_gone = 0;
};

struct NetDevice : ::testing::Test {
  Cable cable;
  Bench bench{std::make_unique<FakePort>(cable)};

  void arrive(const std::string& bytes, uint8_t flags = 0) {
    cable.to_guest.push_back(header(0xbeef, flags) + bytes);
  }
};

TEST_F(NetDevice, SaysWhatItIs) {
  EXPECT_EQ(bench.net.type(), 1u);
  EXPECT_EQ(bench.net.queue_sizes().size(), 2u);
  const auto config = bench.net.config();
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(config.data()), 6), std::string("\2\0\0\0\0\1", 6));
  EXPECT_EQ(bench.link_status(), 1);
  EXPECT_EQ(bench.net.features() & virtio::net::kMtu, 0u);
}

// RFC 903, behind a virtio_net_hdr that asks for nothing.
TEST_F(NetDevice, AnnouncesItsAddressToWhoeverIsOnTheCable) {
  bench.net.announce();
  ASSERT_EQ(cable.from_guest.size(), 1U);
  const std::string mac("\2\0\0\0\0\1", 6);
  const std::string nothing(4, '\0');
  std::string wanted = std::string(12, '\0') + std::string(6, '\xff') + mac + "\x80\x35" +
                       std::string("\0\1\x08\0\6\4\0\3", 8) + mac + nothing + mac + nothing;
  wanted.resize(12 + 60);
  EXPECT_EQ(cable.from_guest.front(), wanted);
}

TEST_F(NetDevice, TellsAnMtuThatIsNotTheUsualOne) {
  const Bench jumbo(std::make_unique<FakePort>(cable), 64, 9000);
  EXPECT_NE(jumbo.net.features() & virtio::net::kMtu, 0u);
  EXPECT_EQ(int(jumbo.net.config()[10]) | int(jumbo.net.config()[11]) << 8, 9000);
  const Bench absurd(std::make_unique<FakePort>(cable), 64, 67);
  EXPECT_EQ(absurd.net.features() & virtio::net::kMtu, 0u);
}

TEST_F(NetDevice, PutsAFrameIntoOneBufferWhereItFits) {
  bench.start();
  bench.receive.add({}, {2000});
  arrive(frame(100));
  bench.serve();
  const auto used = bench.receive.used();
  ASSERT_EQ(used.size(), 1u);
  EXPECT_EQ(used[0].bytes, header(1) + frame(100));
  EXPECT_EQ(bench.net.counts().received, 1u);
}

TEST_F(NetDevice, CutsAHeaderAndFrameAsTheDriversBuffersAre) {
  bench.start();
  bench.receive.add({}, {1, 5, 7, 90, 9});
  arrive(frame(100));
  bench.serve();
  EXPECT_EQ(bench.receive.used().at(0).bytes, header(1) + frame(100));
}

TEST_F(NetDevice, SplitsALargeFrameAndSaysInHowManyParts) {
  bench.start();
  for (int count = 0; count < 20; ++count)
    bench.receive.add({}, {4096});
  arrive(frame(65'000));
  EXPECT_EQ(bench.serve(), 1); // and so in one publish
  std::string all;
  const auto used = bench.receive.used();
  for (const auto& one : used)
    all += one.bytes;
  EXPECT_EQ(used.size(), 16u);
  EXPECT_EQ(all, header(16) + frame(65'000));
  arrive(frame(60, 2));
  bench.serve();
  EXPECT_EQ(bench.receive.used().at(0).bytes, header(1) + frame(60, 2));
}

TEST_F(NetDevice, KeepsAFrameUntilThereAreBuffersEnough) {
  bench.start();
  bench.receive.add({}, {1000});
  arrive(frame(1500));
  arrive(frame(60, 2));
  bench.serve();
  EXPECT_TRUE(bench.receive.used().empty());
  EXPECT_EQ(cable.to_guest.size(), 1u); // the other one waits with the port
  EXPECT_EQ(bench.net.watch().fd, -1);  // and nobody is to be woken by it
  EXPECT_TRUE(bench.receive.notice_wanted());
  bench.receive.add({}, {1000});
  bench.receive.add({}, {1000});
  bench.serve();
  const auto used = bench.receive.used();
  ASSERT_EQ(used.size(), 3u);
  EXPECT_EQ(used[0].bytes + used[1].bytes, header(2) + frame(1500));
  EXPECT_EQ(used[2].bytes, header(1) + frame(60, 2));
}

TEST_F(NetDevice, AsksForANoticeOfTheBuffersThatAreStillToCome) {
  bench.start(kUsual, true);
  bench.receive.add({}, {1000});
  bench.receive.add({}, {400});
  arrive(frame(1500));
  bench.serve();
  EXPECT_TRUE(bench.receive.notice_wanted_by_index());
  bench.receive.add({}, {1000});
  bench.serve();
  EXPECT_EQ(bench.receive.used().size(), 3u);
  EXPECT_TRUE(bench.receive.notice_wanted_by_index());
  EXPECT_TRUE(bench.transmit.notice_wanted_by_index());
}

TEST_F(NetDevice, LeavesFramesWithThePortWhileTheDriverHasNoBuffers) {
  bench.start();
  cable.looks = 0;
  arrive(frame(60));
  EXPECT_EQ(bench.serve(), 0);
  EXPECT_EQ(cable.looks, 0u);
  EXPECT_EQ(bench.net.watch().fd, -1);
  EXPECT_TRUE(bench.receive.notice_wanted());
  bench.receive.add({}, {2000});
  bench.serve();
  EXPECT_EQ(bench.receive.used().at(0).bytes, header(1) + frame(60));
}

TEST_F(NetDevice, WaitsForFramesAtThePortWhileThereAreBuffers) {
  bench.start();
  bench.receive.add({}, {2000});
  EXPECT_EQ(bench.serve(), 0);
  EXPECT_EQ(bench.net.watch().fd, FakePort::kFd);
  EXPECT_EQ(bench.net.watch().events, POLLIN);
}

TEST_F(NetDevice, ThrowsAwayAFrameThatAllBuffersTogetherDoNotHold) {
  Bench small(std::make_unique<FakePort>(cable), 4);
  small.start();
  for (int count = 0; count < 4; ++count)
    small.receive.add({}, {100});
  arrive(frame(1000));
  arrive(frame(60, 2));
  small.serve();
  EXPECT_EQ(small.receive.used().at(0).bytes, header(1) + frame(60, 2));
  EXPECT_EQ(small.net.counts().not_received, 1u);
}

TEST_F(NetDevice, ThrowsAwayALargeFrameWhereTheDriverDoesNotMerge) {
  bench.start(kUsual & ~uint64_t{virtio::net::kMergeBuffers});
  bench.receive.add({}, {100});
  bench.receive.add({}, {100});
  arrive(frame(120));
  arrive(frame(60, 2));
  bench.serve();
  const auto used = bench.receive.used();
  ASSERT_EQ(used.size(), 1u);
  EXPECT_EQ(used[0].bytes, header(1) + frame(60, 2));
  EXPECT_EQ(bench.net.counts().not_received, 1u);
}

TEST_F(NetDevice, ThrowsAwayWhatWasCutOffByItsOwnBuffer) {
  bench.start();
  for (int count = 0; count < 30; ++count)
    bench.receive.add({}, {4096});
  arrive(frame(100'000));
  arrive(frame(60, 2));
  bench.serve();
  EXPECT_EQ(bench.receive.used().at(0).bytes, header(1) + frame(60, 2));
}

TEST_F(NetDevice, SaysNothingOfChecksumsToADriverThatHasNotAsked) {
  bench.start(kUsual);
  bench.receive.add({}, {2000});
  arrive(frame(60), 2);
  bench.serve();
  EXPECT_EQ(bench.receive.used().at(0).bytes, header(1, 2) + frame(60));
  bench.net.reset();
  bench.net.start(virtio::net::kMac, bench.queues);
  bench.receive.add({}, {2000});
  arrive(frame(60), 2);
  bench.serve();
  EXPECT_EQ(bench.receive.used().at(0).bytes, header(1) + frame(60));
}

TEST_F(NetDevice, TakesAReceiveBufferWithoutRoomForAHeaderForBroken) {
  for (const std::vector<uint32_t>& writable : {std::vector<uint32_t>{11}, {}}) {
    Bench hostile(std::make_unique<FakePort>(cable));
    hostile.start();
    hostile.receive.add(writable.empty() ? std::vector<std::string>{"text"} : std::vector<std::string>{}, writable);
    arrive(frame(60));
    hostile.serve();
    EXPECT_STREQ(hostile.queues[0]->broken(), "a receive buffer has no room for a header");
    EXPECT_TRUE(hostile.receive.used().empty());
    cable.to_guest.clear();
  }
}

TEST_F(NetDevice, SendsAFrameAsTheDriverPutsIt) {
  bench.start();
  bench.transmit.add({header(), frame(60)}, {});
  const std::string whole = header(0, 1, 1) + frame(60'000, 2);
  bench.transmit.add({whole.substr(0, 5), whole.substr(5, 1000), whole.substr(1005)}, {});
  bench.serve();
  EXPECT_EQ(cable.from_guest, (std::vector<std::string>{header() + frame(60), whole}));
  const auto used = bench.transmit.used();
  ASSERT_EQ(used.size(), 2u);
  EXPECT_EQ(used[1].written, 0u);
  EXPECT_EQ(bench.net.counts().sent, 2u);
}

TEST_F(NetDevice, CountsFramesAndTheirBytesWithoutTheirHeaders) {
  bench.start();
  bench.receive.add({}, {2000});
  for (int part = 0; part < 4; ++part)
    bench.receive.add({}, {600});
  arrive(frame(100));
  arrive(frame(1500, 2)); // over three buffers
  bench.transmit.add({header() + frame(60)}, {});
  bench.transmit.add({header() + frame(13)}, {});
  bench.serve();
  bench.net.reset(); // a driver that begins anew does not make it forget
  std::string counted;
  for (const DeviceCounter& counter : bench.net.counters())
    counted += std::string(counter.name) + " " + std::to_string(counter.value) + "\n";
  EXPECT_EQ(counted, "frames_received 2\nbytes_received 1600\nframes_sent 1\nbytes_sent 60\ndropped_received 0\n"
                     "dropped_sent 1\n");
}

TEST_F(NetDevice, KeepsAFrameInTheQueueWhileThePortIsFull) {
  bench.start();
  cable.full = true;
  bench.receive.add({}, {2000});
  bench.transmit.add({header() + frame(60, 1)}, {});
  bench.transmit.add({header() + frame(60, 2)}, {});
  EXPECT_EQ(bench.serve(), 0);
  EXPECT_EQ(bench.serve(), 0);
  EXPECT_TRUE(bench.transmit.used().empty());
  EXPECT_EQ(bench.net.watch().events, POLLIN | POLLOUT);
  cable.full = false;
  bench.serve();
  EXPECT_EQ(cable.from_guest, (std::vector<std::string>{header() + frame(60, 1), header() + frame(60, 2)}));
  EXPECT_EQ(bench.transmit.used().size(), 2u);
  EXPECT_EQ(bench.net.watch().events, POLLIN);
}

TEST_F(NetDevice, ReceivesWhileThePortIsFull) {
  bench.start();
  cable.full = true;
  bench.transmit.add({header() + frame(60)}, {});
  bench.receive.add({}, {2000});
  arrive(frame(70));
  bench.serve();
  EXPECT_EQ(bench.receive.used().size(), 1u);
}

TEST_F(NetDevice, ThrowsAwayWhatIsNoFrameAndGivesTheChainBack) {
  bench.start();
  bench.transmit.add({header().substr(1)}, {});
  bench.transmit.add({header() + frame(13)}, {});
  bench.transmit.add({header() + frame(70'000)}, {});
  bench.transmit.add({}, {100});
  bench.transmit.add({header() + frame(14)}, {100});
  bench.serve();
  EXPECT_EQ(cable.from_guest, std::vector<std::string>{header() + frame(14)});
  EXPECT_EQ(bench.transmit.used().size(), 5u);
  EXPECT_EQ(bench.net.counts().not_sent, 4u);
}

TEST_F(NetDevice, ThrowsAwayWhatThePortRefuses) {
  bench.start();
  cable.refuses = true;
  bench.transmit.add({header() + frame(60)}, {});
  bench.serve();
  EXPECT_EQ(bench.transmit.used().size(), 1u);
  EXPECT_EQ(bench.net.counts().not_sent, 1u);
}

TEST_F(NetDevice, TakesTheLinkDownWhenThePortIsGoneAndTellsOnce) {
  bench.start();
  bench.receive.add({}, {2000});
  cable.gone = true;
  bench.serve();
  EXPECT_EQ(bench.net.trouble(), "the tap is gone");
  EXPECT_EQ(bench.link_status(), 0);
  bench.transmit.add({header() + frame(60)}, {});
  bench.serve();
  EXPECT_EQ(bench.transmit.used().size(), 1u); // the driver goes on
  EXPECT_EQ(bench.told_gone, 1);
  EXPECT_EQ(bench.net.watch().fd, -1);
}

// The kernel's tun driver drops a frame whose kind of segments it cannot name, and says EINVAL for that one.
TEST_F(NetDevice, DoesWithoutAFrameThatThePortCannotGive) {
  bench.start();
  bench.receive.add({}, {2000});
  cable.to_guest = {testing::FakePort::kBadFrame, header() + frame(60)};
  bench.serve();
  EXPECT_EQ(bench.net.trouble(), "");
  EXPECT_EQ(bench.receive.used().size(), 1u);
  EXPECT_EQ(bench.net.counts().not_received, 1u);
  EXPECT_EQ(bench.net.counts().received, 1u);
}

TEST_F(NetDevice, FindsOutThatThePortIsGoneBySendingToo) {
  bench.start();
  cable.gone = true;
  bench.transmit.add({header() + frame(60)}, {});
  bench.serve();
  EXPECT_EQ(bench.transmit.used().size(), 1u);
  EXPECT_EQ(bench.told_gone, 1);
}

TEST_F(NetDevice, AsksThePortForWhatTheDriverTakes) {
  namespace net = virtio::net;
  bench.start(kUsual);
  EXPECT_EQ(cable.offloads, uint32_t{TUN_F_CSUM | TUN_F_TSO4});
  bench.net.reset();
  EXPECT_EQ(cable.offloads, 0u);
  bench.start(net::kGuestChecksum | net::kGuestTso4 | net::kGuestTso6 | net::kGuestEcn);
  EXPECT_EQ(cable.offloads, uint32_t{TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN});
  bench.start(net::kGuestTso4 | net::kGuestEcn); // of no use without the checksum
  EXPECT_EQ(cable.offloads, 0u);
  bench.start(net::kGuestChecksum | net::kGuestEcn);
  EXPECT_EQ(cable.offloads, uint32_t{TUN_F_CSUM});
}

TEST_F(NetDevice, ForgetsWhatWasMeantForTheDriverBefore) {
  arrive(frame(60, 1)); // before there was one
  bench.start();
  EXPECT_TRUE(cable.to_guest.empty());
  bench.receive.add({}, {100});
  arrive(frame(500, 2)); // waits for buffers
  bench.serve();
  bench.net.reset();
  for (const auto& queue : bench.queues)
    queue->stop();
  bench.receive.forget();
  bench.start();
  bench.receive.add({}, {2000});
  EXPECT_EQ(bench.serve(), 0);
  arrive(frame(60, 3));
  bench.serve();
  EXPECT_EQ(bench.receive.used().at(0).bytes, header(1) + frame(60, 3));
}

// Frames both ways, buffers of any size at any time, a port that fills up: what comes out is what went in, in
// order.
TEST_F(NetDevice, LosesAndDoublesNothingWhateverTheOrder) {
  for (uint32_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const auto below = [&random](uint32_t limit) { return uint32_t(random() % limit); };
    Cable both;
    Bench any(std::make_unique<FakePort>(both), 32);
    any.start();
    std::string out_there;
    std::vector<std::string> sent;
    const auto collect = [&] {
      for (const auto& one : any.receive.used())
        out_there += one.bytes;
    };
    const auto feed = [&] {
      while (any.receive.room() > 0)
        any.receive.add({}, {12 + below(5000)});
    };
    std::vector<std::string> to_guest;
    for (uint32_t step = 0; step < 300; ++step) {
      switch (below(6)) {
      case 0:
        to_guest.push_back(frame(14 + below(below(2) == 0 ? 1500 : 12'000), step));
        both.to_guest.push_back(header() + to_guest.back());
        break;
      case 1:
        if (any.receive.room() > 0)
          any.receive.add({}, {12 + below(5000)});
        break;
      case 2:
        if (any.transmit.room() > 1) {
          sent.push_back(header() + frame(14 + below(3000), step));
          const size_t cut = below(uint32_t(sent.back().size()) - 1) + 1;
          any.transmit.add({sent.back().substr(0, cut), sent.back().substr(cut)}, {});
        }
        break;
      case 3:
        both.full = below(2) == 0;
        break;
      case 4:
        collect();
        (void)any.transmit.used();
        break;
      default:
        (void)any.net.serve(any.queues);
      }
    }
    both.full = false;
    for (int round = 0; round < 300; ++round) {
      feed();
      any.serve();
      collect();
    }
    // Headers tell how many buffers a frame had; else they are empty.
    std::string wanted;
    for (const std::string& one : to_guest)
      wanted += header() + one;
    ASSERT_EQ(out_there.size(), wanted.size());
    size_t at = 0;
    for (const std::string& one : to_guest) {
      ASSERT_EQ(out_there.substr(at + kHeaderBytes, one.size()), one);
      at += kHeaderBytes + one.size();
    }
    ASSERT_EQ(both.from_guest, sent);
    ASSERT_EQ(any.net.counts().not_received + any.net.counts().not_sent, 0u);
  }
}

TEST(NetDeviceAtATap, CarriesFramesBothWays) {
  if (!testing::why_no_taps().empty())
    GTEST_SKIP() << testing::why_no_taps();
  auto tap = Tap::open("sv0");
  ASSERT_TRUE(tap) << tap.error().message();
  testing::set_up("sv0", true);
  const testing::Wire wire("sv0");
  const int fd = tap->fd();
  Bench bench(std::make_unique<Tap>(*std::move(tap)));
  bench.start();
  const std::string there = testing::frame_of(frame(900));
  wire.send(there);
  std::string got;
  while (got.empty()) { // the host's kernel says hello to its neighbours as well
    bench.receive.add({}, {2000});
    pollfd entry{fd, POLLIN, 0};
    ASSERT_EQ(::poll(&entry, 1, 10'000), 1);
    bench.serve();
    for (const auto& one : bench.receive.used())
      if (one.bytes.substr(kHeaderBytes) == there)
        got = one.bytes;
  }
  EXPECT_EQ(got, header(1) + there);
  const std::string back = testing::frame_of(frame(800, 2));
  bench.transmit.add({header(), back}, {});
  bench.serve();
  EXPECT_EQ(wire.receive(), back);
  testing::remove_interface("sv0");
  bench.receive.add({}, {2000});
  bench.serve();
  EXPECT_EQ(bench.told_gone, 1);
}

} // namespace
} // namespace stopvisor::vmm
