// SPDX-License-Identifier: Apache-2.0
// The host's end of a network device: where frames come from and go to. A tap; in tests whatever they need.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>

namespace stopvisor::vmm {

// One frame at a time, preceded by a virtio_net_hdr of 12 bytes. CONTEXT of all: any thread, nothing blocks.
class FramePort {
public:
  enum class Outcome {
    kDone,
    kLater,   // nothing there, or no room: poll fd()
    kRefused, // this frame will never be taken, or given; others may
    kGone,    // no frame will come or go any more
  };
  struct Received {
    Outcome outcome = Outcome::kLater;
    size_t bytes = 0; // with the header, where it is kDone
  };

  virtual ~FramePort() = default;
  // For poll(2): readable where a frame may be there, writable where there may be room.
  [[nodiscard]] virtual int fd() const noexcept = 0;
  // A frame that does not fit is cut off, without a word: `to` has room for more than any frame.
  [[nodiscard]] virtual Received receive(std::span<std::byte> to) const noexcept = 0;
  [[nodiscard]] virtual Outcome send(std::span<const iovec> parts) const noexcept = 0;
  // Which frames may come undone, TUN_F_* (TUNSETOFFLOAD): others are finished before they are received.
  // RETURNS: whether it can be so.
  [[nodiscard]] virtual bool set_offloads(uint32_t offloads) const noexcept = 0;
};

} // namespace stopvisor::vmm
