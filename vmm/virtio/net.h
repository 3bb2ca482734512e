// SPDX-License-Identifier: Apache-2.0
// A network device (virtio 1.2, 5.1): moves frames between a pair of queues and a port, a tap as a rule.
//
// One worker moves them, one frame each way in a turn, so that a stop waits for two frames at most. A frame is at
// every moment in one place: with the port, here (one that was read and found no buffers yet), or in a queue. So
// none is lost or doubled by a stop, however long.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "vmm/frame_port.h"
#include "vmm/mac_address.h"
#include "vmm/virtio/device.h"

namespace stopvisor::vmm::virtio {

struct NetCounts {
  uint64_t received = 0;                       // frames given to the guest
  uint64_t sent = 0;                           // frames the port has taken from the guest
  uint64_t received_bytes = 0, sent_bytes = 0; // of these frames, from their Ethernet header on
  uint64_t not_received = 0; // thrown away: larger than the guest's buffers can be, or the port failed at it
  uint64_t not_sent = 0;     // thrown away: no frames, or the port refused them
};

class Net final : public Device {
public:
  struct Setting {
    std::string name; // "net0"
    MacAddress mac;
    // Told to the driver where it is not the usual one, which it may change itself.
    uint32_t mtu = kUsualMtu;
  };
  static constexpr uint32_t kUsualMtu = 1500;

  Net(Setting setting, std::unique_ptr<FramePort> port);

  [[nodiscard]] const std::string& name() const noexcept override { return name_; }
  [[nodiscard]] uint32_t type() const noexcept override;
  [[nodiscard]] uint64_t features() const noexcept override;
  [[nodiscard]] std::span<const uint16_t> queue_sizes() const noexcept override;
  [[nodiscard]] std::span<const std::byte> config() const noexcept override;
  [[nodiscard]] std::string trouble() const override { return gone() ? "the tap is gone" : ""; }

  void start(uint64_t features, Queues queues) noexcept override;
  [[nodiscard]] bool serve(Queues queues) noexcept override;
  [[nodiscard]] Watch watch() noexcept override;
  void reset() noexcept override;

  // A RARP request for its own address, as a broadcast: a switch learns from it behind which port the guest is.
  void announce() const noexcept override;

  void save_state(StateWriter& to) const override;
  void restore_state(StateReader& from) override;

  // Live values, each by itself. CONTEXT: any thread.
  [[nodiscard]] NetCounts counts() const noexcept;
  [[nodiscard]] std::vector<DeviceCounter> counters() const override;
  [[nodiscard]] bool gone() const noexcept { return gone_.load(std::memory_order_relaxed); }

private:
  // virtio_net_hdr (5.1.6), of which every frame has one.
  static constexpr size_t kHeaderBytes = 12;
  // Above any frame: 64 KiB of payload with headers before it, virtio's and Ethernet's.
  static constexpr size_t kFrameBytes = 68U << 10;

  [[nodiscard]] bool receive_one(Queue& queue) noexcept;
  [[nodiscard]] bool fetch() noexcept;
  void make_header_fit() noexcept;
  [[nodiscard]] bool deliver(Queue& queue) noexcept;
  [[nodiscard]] bool deliver_in_parts(Queue& queue) noexcept;
  void note_received() noexcept;
  void throw_away() noexcept;
  [[nodiscard]] bool send_one(Queue& queue) noexcept;
  void note_gone() noexcept;

  const std::string name_;
  const MacAddress mac_;
  const uint64_t features_;
  std::vector<std::byte> config_;
  const std::unique_ptr<FramePort> port_;

  uint64_t taken_ = 0; // features the driver has taken
  Chain chain_;        // the one being worked at
  std::vector<std::byte> frame_;
  size_t frame_bytes_ = 0; // 0: no frame waits here
  bool starved_ = false;   // the guest has no buffers for what may come
  bool full_ = false;      // the port had no room for what is to go

  std::atomic<bool> gone_{false};
  // Written by jobs alone.
  WorkCounter received_, sent_, received_bytes_, sent_bytes_, not_received_, not_sent_;
};

} // namespace stopvisor::vmm::virtio
