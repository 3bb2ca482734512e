// SPDX-License-Identifier: Apache-2.0
#include "vmm/virtio/net.h"

#include <linux/if_ether.h>
#include <linux/if_tun.h>
#include <poll.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <utility>

#include "vmm/virtio/net_layout.h"
#include "vmm/virtio/rarp.h"

namespace stopvisor::vmm::virtio {
namespace {

using Outcome = FramePort::Outcome;

constexpr std::array<uint16_t, 2> kQueueSizes{kMaxQueueSize, kMaxQueueSize};
constexpr uint64_t kAlways = net::kMac | net::kStatus | net::kMergeBuffers | net::kChecksum | net::kHostTso4 |
                             net::kHostTso6 | net::kHostEcn | net::kGuestChecksum | net::kGuestTso4 |
                             net::kGuestTso6 | net::kGuestEcn;

// A frame to be sent, with its virtio_net_hdr: 64 KiB of payload and two VLAN tags at most.
constexpr uint64_t kMaxSentBytes = sizeof(net::Header) + ETH_HLEN + 8 + 0xffff;
constexpr uint64_t kMinSentBytes = sizeof(net::Header) + ETH_HLEN;

// More than a tap's queue holds unless somebody has made it longer: after so many the rest is let through.
constexpr uint32_t kMaxStaleFrames = 4096;

// What the tap is told of what the driver has taken. Segments are of no use to one that does not finish checksums
// (5.1.3.1), and the kernel agrees.
uint32_t tap_offloads(uint64_t features) noexcept {
  if ((features & net::kGuestChecksum) == 0)
    return 0;
  uint32_t offloads = TUN_F_CSUM;
  if ((features & net::kGuestTso4) != 0)
    offloads |= TUN_F_TSO4;
  if ((features & net::kGuestTso6) != 0)
    offloads |= TUN_F_TSO6;
  if (offloads != TUN_F_CSUM && (features & net::kGuestEcn) != 0)
    offloads |= TUN_F_TSO_ECN;
  return offloads;
}

std::vector<std::byte> config_of(const Net::Setting& setting) {
  const net::Config config{setting.mac.bytes, net::kLinkUp, 1, uint16_t(setting.mtu)};
  std::vector<std::byte> bytes(sizeof config);
  std::memcpy(bytes.data(), &config, bytes.size());
  return bytes;
}

uint64_t features_of(const Net::Setting& setting) noexcept {
  if (setting.mtu == Net::kUsualMtu || setting.mtu < net::kMinMtu || setting.mtu > net::kMaxMtu)
    return kAlways;
  return kAlways | net::kMtu;
}

} // namespace

Net::Net(Setting setting, std::unique_ptr<FramePort> port)
    : name_(std::move(setting.name)), mac_(setting.mac), features_(features_of(setting)),
      config_(config_of(setting)), port_(std::move(port)), frame_(kFrameBytes) {}

void Net::announce() const noexcept {
  std::array<std::byte, kHeaderBytes> header{}; // nothing is left to be done to the frame
  auto frame = rarp_announcement(mac_);
  const std::array<iovec, 2> parts{{{header.data(), header.size()}, {frame.data(), frame.size()}}};
  (void)port_->send(parts); // one of several, and the guest speaks for itself as soon as it does
}

uint32_t Net::type() const noexcept {
  return net::kDeviceType;
}
uint64_t Net::features() const noexcept {
  return features_;
}
std::span<const uint16_t> Net::queue_sizes() const noexcept {
  return kQueueSizes;
}
std::span<const std::byte> Net::config() const noexcept {
  return config_;
}

void Net::start(uint64_t features, Queues /*queues*/) noexcept {
  taken_ = features;
  // What waits there was meant for whoever was here before: it may be undone in ways this driver does not know, and
  // may be hours old. A network card that was off has not seen it either.
  for (uint32_t stale = 0; stale < kMaxStaleFrames; ++stale)
    if (const Outcome outcome = port_->receive(frame_).outcome;
        outcome == Outcome::kLater || outcome == Outcome::kGone)
      break;
  (void)port_->set_offloads(tap_offloads(features)); // where it cannot, frames come finished, which is always right
}

void Net::reset() noexcept {
  taken_ = 0;
  frame_bytes_ = 0;
  starved_ = false;
  full_ = false;
  (void)port_->set_offloads(0);
}

// The frame that waits here is in no queue and with no port. What else is noted between two jobs is found out anew.
void Net::save_state(StateWriter& to) const {
  net::Config config{};
  std::memcpy(&config, config_.data(), sizeof config);
  to.put_bytes(std::as_bytes(std::span(config.mac)));
  to.put(gone());
  to.put(static_cast<uint32_t>(frame_bytes_));
  to.put_bytes(std::span(frame_).first(frame_bytes_));
}

void Net::restore_state(StateReader& from) {
  net::Config config{};
  std::memcpy(&config, config_.data(), sizeof config);
  const auto own = std::as_bytes(std::span(config.mac));
  const auto mac = from.get_bytes(own.size());
  from.refuse_unless(std::ranges::equal(mac, own), "the guest knows it by another MAC address");
  const bool was_gone = from.get_flag();
  const auto bytes = from.get<uint32_t>();
  if (bytes != 0 && (bytes < kHeaderBytes || bytes >= frame_.size()))
    return from.refuse("a frame of a size that there is not");
  std::ranges::copy(from.get_bytes(bytes), frame_.begin());
  frame_bytes_ = bytes;
  if (was_gone != gone()) // the cable was plugged in again
    config_changed();
}

bool Net::serve(Queues queues) noexcept {
  const bool received = receive_one(*queues[net::kReceiveQueue]);
  const bool sent = send_one(*queues[net::kTransmitQueue]);
  return received || sent;
}

Watch Net::watch() noexcept {
  // Frames for which there are no buffers wait with the port: to be told of them would keep the worker awake.
  const int events = (starved_ ? 0 : POLLIN) | (full_ ? POLLOUT : 0);
  if (gone() || events == 0)
    return {};
  return {port_->fd(), short(events)};
}

// ---- from the port to the guest
// -----------------------------------------------------------------------------------

bool Net::receive_one(Queue& queue) noexcept {
  if (gone())
    return false;
  // Buffers first: what cannot be given on is not taken from the port.
  while (!queue.next(chain_)) {
    starved_ = true;
    if (!queue.ask_for_notice())
      return false;
  }
  starved_ = false;
  if (chain_.writable_bytes() < kHeaderBytes) {
    queue.declare_broken("a receive buffer has no room for a header");
    return false;
  }
  const bool fetched = frame_bytes_ == 0 && fetch();
  if (frame_bytes_ == 0) {
    queue.give_back();
    return fetched;
  }
  return deliver(queue);
}

// RETURNS: whether there was a frame; it may have been thrown away.
bool Net::fetch() noexcept {
  const FramePort::Received received = port_->receive(frame_);
  if (received.outcome == Outcome::kLater)
    return false;
  if (received.outcome == Outcome::kGone) {
    note_gone();
    return false;
  }
  if (received.outcome == Outcome::kRefused || received.bytes < kHeaderBytes ||
      received.bytes == frame_.size()) { // the last was cut off
    throw_away();
    return true;
  }
  frame_bytes_ = received.bytes;
  make_header_fit();
  return true;
}

// The kernel says what it knows of the checksum even to those who did not ask, and does not know of the number of
// buffers.
void Net::make_header_fit() noexcept {
  net::Header header{};
  std::memcpy(&header, frame_.data(), sizeof header);
  if ((taken_ & net::kGuestChecksum) == 0)
    header.flags = 0;
  header.buffers = 1;
  std::memcpy(frame_.data(), &header, sizeof header);
}

// Puts the frame into chain_, or into it and those behind it. RETURNS: whether something was done.
bool Net::deliver(Queue& queue) noexcept {
  if (chain_.write(0, {frame_.data(), frame_bytes_})) {
    queue.put(chain_, uint32_t(frame_bytes_));
    queue.publish();
    note_received();
    return true;
  }
  if ((taken_ & net::kMergeBuffers) != 0)
    return deliver_in_parts(queue);
  queue.give_back();
  throw_away();
  return true;
}

// The number of parts stands in the first one: chains are counted, given back and taken again. The driver may have
// changed them in between; then its frame comes out wrong, and nobody else's.
bool Net::deliver_in_parts(Queue& queue) noexcept {
  uint16_t parts = 1;
  for (uint64_t room = chain_.writable_bytes(); room < frame_bytes_; room += chain_.writable_bytes()) {
    if (!queue.next(chain_)) {
      starved_ = parts < queue.size();                      // else these are all that there can be
      const bool more = starved_ && queue.ask_for_notice(); // of what comes behind those that are given back
      queue.give_back(parts);
      if (!starved_)
        throw_away();
      return more || !starved_;
    }
    ++parts;
  }
  queue.give_back(parts);

  std::memcpy(frame_.data() + offsetof(net::Header, buffers), &parts, sizeof parts);
  size_t done = 0;
  for (uint16_t part = 0; part < parts && queue.next(chain_); ++part) {
    const auto bytes = std::min<uint64_t>(chain_.writable_bytes(), frame_bytes_ - done);
    (void)chain_.write(0, {frame_.data() + done, bytes});
    queue.put(chain_, uint32_t(bytes));
    done += bytes;
  }
  queue.publish(); // all at once: a driver that has seen the first part expects the others
  note_received();
  return true;
}

void Net::note_received() noexcept {
  received_.add(1);
  received_bytes_.add(frame_bytes_ - kHeaderBytes);
  frame_bytes_ = 0;
}

void Net::throw_away() noexcept {
  frame_bytes_ = 0;
  not_received_.add(1);
}

// ---- from the guest to the port
// -----------------------------------------------------------------------------------

bool Net::send_one(Queue& queue) noexcept {
  full_ = false;
  while (!queue.next(chain_))
    if (!queue.ask_for_notice())
      return false;
  // The guest may change the frame while it is sent; it is the kernel that copies it, once, and checks the copy.
  Outcome outcome = Outcome::kRefused;
  if (!gone() && chain_.readable_bytes() >= kMinSentBytes && chain_.readable_bytes() <= kMaxSentBytes)
    outcome = port_->send(chain_.readable());
  if (outcome == Outcome::kLater) {
    queue.give_back();
    full_ = true;
    return false;
  }
  if (outcome == Outcome::kGone)
    note_gone();
  if (outcome == Outcome::kDone) {
    sent_.add(1);
    sent_bytes_.add(chain_.readable_bytes() - kHeaderBytes);
  } else {
    not_sent_.add(1);
  }
  queue.put(chain_, 0);
  queue.publish();
  return true;
}

// The guest sees a cable without carrier; what it sends is thrown away.
void Net::note_gone() noexcept {
  if (gone())
    return;
  gone_.store(true, std::memory_order_relaxed); // a flag by itself: tells other threads, changes nothing of theirs
  // One byte, written whole: LINK_UP is in the lower one.
  std::atomic_ref(config_[offsetof(net::Config, status)]).store(std::byte{0}, std::memory_order_relaxed);
  config_changed();
}

NetCounts Net::counts() const noexcept {
  return {received_.value(),   sent_.value(),         received_bytes_.value(),
          sent_bytes_.value(), not_received_.value(), not_sent_.value()};
}

std::vector<DeviceCounter> Net::counters() const {
  const NetCounts now = counts();
  return {
      {"frames_received", now.received}, {"bytes_received", now.received_bytes}, {"frames_sent", now.sent},
      {"bytes_sent", now.sent_bytes},    {"dropped_received", now.not_received}, {"dropped_sent", now.not_sent}};
}

} // namespace stopvisor::vmm::virtio
