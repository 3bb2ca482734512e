// SPDX-License-Identifier: Apache-2.0
// A split virtqueue (virtio 1.2, 2.7) as a device reads it: as the input of somebody who may be hostile.
//
// The driver owns the memory the queue lies in and may write anything there at any time. Each word is read once
// into our own memory, checked, then used. A queue that cannot be true is broken: it says why, gives no more chains
// and is left alone until the driver resets the device.
//
// What the device writes, and its own words of the ring, are noted in WrittenPages.
//
// CONTEXT: one thread at a time; the device's worker while the device runs.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <utility>

#include "vmm/guest_memory.h"
#include "vmm/virtio/chain.h"
#include "vmm/written_pages.h"

namespace stopvisor::vmm::virtio {

class Queue {
public:
  // Where the driver has put it, and which of the ring's features it has taken.
  struct Layout {
    uint16_t size = 0;
    uint64_t descriptors = 0; // guest physical addresses
    uint64_t available = 0;   // "driver area"
    uint64_t used = 0;        // "device area"
    bool indirect = false;    // VIRTIO_F_INDIRECT_DESC
    bool event_index = false; // VIRTIO_F_EVENT_IDX
  };

  // Both outlive it; `written` is of `memory`.
  Queue(const GuestMemory& memory, WrittenPages& written) noexcept : memory_(memory), written_(written) {}

  // From now on there may be chains. A layout that cannot be leaves the queue broken.
  void start(const Layout& layout) noexcept;
  void stop() noexcept; // back to the state after construction
  [[nodiscard]] bool started() const noexcept { return started_; }
  // Why it is broken; null where it is not.
  [[nodiscard]] const char* broken() const noexcept { return broken_; }

  // ---- for devices --------------------------------------------------------------------------------------------

  // How many chains there can be at most; 0: not started.
  [[nodiscard]] uint16_t size() const noexcept { return layout_.size; }

  // Takes the next chain. RETURNS: false where there is none, the queue is not started, or is broken.
  [[nodiscard]] bool next(Chain& chain) noexcept;
  // The last `chains` taken by next(), none of which was put(), will be taken again.
  void give_back(uint16_t chains = 1) noexcept;
  // The device is done with a chain, having filled `written` of its writable bytes, the first ones; all of them are
  // noted as written. The driver does not see it before publish(). Whatever was written to must come here.
  void put(const Chain& chain, uint32_t written) noexcept;
  // Shows the driver all that was put, and notes whether it wants an interrupt for it.
  void publish() noexcept;
  // Nothing is left to do here: the driver is asked to tell of the next chain. RETURNS: whether there is one
  // already, which it may not tell of: look again.
  [[nodiscard]] bool ask_for_notice() noexcept;

  // The device says that the driver broke the rules (a request without a header). Goes quiet as above.
  void declare_broken(const char* why) noexcept { broken_ = why; } // a literal

  // ---- for the transport --------------------------------------------------------------------------------------

  // Where it is between two jobs; the rest is in guest memory, and the layout is the driver's.
  struct Position {
    uint16_t next_available = 0;
    uint16_t next_used = 0;
    bool notices_off = false;
    bool broken = false;
  };
  [[nodiscard]] Position position() const noexcept {
    return {next_available_, next_used_, notices_off_, broken_ != nullptr};
  }
  // Goes on from there. CONTEXT: after start(); no device uses it yet.
  void go_on_from(const Position& position) noexcept;

  // Whether an interrupt is due since the last call.
  [[nodiscard]] bool take_interrupt() noexcept { return std::exchange(interrupt_due_, false); }
  // Chains that were published since construction. CONTEXT: any thread.
  [[nodiscard]] uint64_t chains_done() const noexcept { return chains_done_.load(std::memory_order_relaxed); }

private:
  struct Descriptor { // virtq_desc
    uint64_t address;
    uint32_t length;
    uint16_t flags;
    uint16_t next;
  };
  // A table of descriptors: the queue's own, or an indirect one.
  using Table = std::span<std::byte>;

  [[nodiscard]] static Descriptor copy(Table table, uint16_t index) noexcept;
  [[nodiscard]] bool fail(const char* why) noexcept;
  [[nodiscard]] bool collect(Chain& chain) noexcept;
  [[nodiscard]] bool enter_indirect(const Descriptor& descriptor, Table& table) noexcept;
  [[nodiscard]] bool add(Chain& chain, const Descriptor& descriptor) noexcept;
  [[nodiscard]] bool wants_interrupt(uint16_t before, uint16_t after) noexcept;
  void note_used(uint64_t at, uint64_t bytes) noexcept { written_.note_data(used_.subspan(at, bytes)); }

  const GuestMemory& memory_;
  WrittenPages& written_;
  Layout layout_;
  bool started_ = false;
  const char* broken_ = nullptr;
  // Host's view of the three areas; empty while not started.
  std::span<std::byte> descriptors_;
  std::span<std::byte> available_;
  std::span<std::byte> used_;
  uint16_t next_available_ = 0; // index of the next chain to take
  uint16_t next_used_ = 0;      // index of the next place to put one
  uint16_t published_ = 0;      // what the driver was shown
  bool notices_off_ = false;    // the driver was told not to notify (without event index)
  bool interrupt_due_ = false;
  std::atomic<uint64_t> chains_done_{0};
};

} // namespace stopvisor::vmm::virtio
