// SPDX-License-Identifier: Apache-2.0
// One request of a driver: buffers of guest memory for the device to read, then buffers for it to fill.
//
// Queue::next() has checked them: they lie in guest memory, and there are no more than a queue has places. What
// stands in them the guest may change at any time: copy it once (read()), check the copy, use the copy.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace stopvisor::vmm::virtio {

inline constexpr uint16_t kMaxQueueSize = 256; // of any queue here; a power of two

class Chain {
public:
  // In the driver's order; none is empty.
  [[nodiscard]] std::span<const iovec> readable() const noexcept { return {buffers_.data(), readable_}; }
  [[nodiscard]] std::span<const iovec> writable() const noexcept {
    return {buffers_.data() + readable_, size_t{count_} - readable_};
  }
  [[nodiscard]] uint64_t readable_bytes() const noexcept { return readable_bytes_; }
  [[nodiscard]] uint64_t writable_bytes() const noexcept { return writable_bytes_; }

  // Copies out of the readable bytes, from `offset` on, however they are cut into buffers: the layout of buffers is
  // the driver's own affair (virtio 1.2, 2.7.4). RETURNS: false, with nothing copied, where there are fewer.
  [[nodiscard]] bool read(uint64_t offset, std::span<std::byte> to) const noexcept;
  // The same into the writable bytes.
  [[nodiscard]] bool write(uint64_t offset, std::span<const std::byte> from) const noexcept;

  // Its number in the used ring.
  [[nodiscard]] uint16_t head() const noexcept { return head_; }

private:
  friend class Queue;
  std::array<iovec, kMaxQueueSize> buffers_; // the first count_ of them
  uint16_t readable_ = 0;
  uint16_t count_ = 0;
  uint16_t head_ = 0;
  uint64_t readable_bytes_ = 0;
  uint64_t writable_bytes_ = 0;
};

using Parts = std::array<iovec, kMaxQueueSize>;

// The buffers behind bytes [offset, offset + length) of `buffers`, put into `parts`, for preadv() and the like.
// RETURNS: the part of `parts` that is used; empty where there are fewer bytes, or length is 0.
[[nodiscard]] std::span<const iovec> cut(std::span<const iovec> buffers, uint64_t offset, uint64_t length,
                                         Parts& parts) noexcept;

} // namespace stopvisor::vmm::virtio
