// SPDX-License-Identifier: Apache-2.0
// The driver's side of one split virtqueue, in guest memory of the test's own (virtio 1.2, 2.7).
#pragma once

#include <cstdint>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "vmm/guest_memory.h"
#include "vmm/virtio/queue.h"

namespace stopvisor::vmm::testing {

class GuestRing {
public:
  struct Used {
    uint16_t head = 0;
    uint32_t written = 0;
    std::string bytes; // the first `written` of the chain's writable ones
  };

  // Lies in memory from `base` on: 64 KiB for the rings, buffers behind them.
  GuestRing(const GuestMemory& memory, uint64_t base, uint16_t size) : memory_(memory), base_(base), size_(size) {
    forget();
  }
  // As a driver does that has reset the device.
  void forget() {
    const std::vector<std::byte> nothing(kBuffers);
    (void)memory_.write(Gpa{base_}, nothing);
    free_.clear();
    for (uint16_t index = 0; index < size_; ++index)
      free_.push_back(index);
    chains_.assign(size_, {});
    available_ = used_ = 0;
  }

  [[nodiscard]] virtio::Queue::Layout layout(bool event_index = false) const {
    return {.size = size_,
            .descriptors = base_,
            .available = base_ + kAvailable,
            .used = base_ + kUsed,
            .event_index = event_index};
  }
  [[nodiscard]] size_t room() const { return free_.size(); }

  // A chain of buffers to be read with these contents, then of buffers of these sizes to be written. RETURNS: its
  // head.
  uint16_t add(const std::vector<std::string>& readable, const std::vector<uint32_t>& writable) {
    std::vector<uint16_t> places;
    for (size_t count = 0; count < readable.size() + writable.size(); ++count) {
      places.push_back(free_.front());
      free_.pop_front();
    }
    Buffers buffers{places, {}};
    for (size_t index = 0; index < places.size(); ++index) {
      const bool is_writable = index >= readable.size();
      const auto length = is_writable ? writable[index - readable.size()] : uint32_t(readable[index].size());
      const uint64_t at = take(length);
      if (is_writable)
        buffers.writable.emplace_back(at, length);
      else
        (void)memory_.write(Gpa{at}, std::as_bytes(std::span(readable[index])));
      const bool last = index + 1 == places.size();
      const uint64_t descriptor = base_ + uint64_t{16} * places[index];
      put<uint64_t>(descriptor, at);
      put<uint32_t>(descriptor + 8, length);
      put<uint16_t>(descriptor + 12, uint16_t((last ? 0 : 1) | (is_writable ? 2 : 0)));
      put<uint16_t>(descriptor + 14, last ? 0 : places[index + 1]);
    }
    const uint16_t head = places.front();
    chains_[head] = std::move(buffers);
    put<uint16_t>(base_ + kAvailable + 4 + uint64_t{2} * (available_ % size_), head);
    put<uint16_t>(base_ + kAvailable + 2, ++available_);
    return head;
  }
  // Every chain the device has given back since the last call.
  std::vector<Used> used() {
    std::vector<Used> all;
    const auto shown = get<uint16_t>(base_ + kUsed + 2);
    for (; used_ != shown; ++used_) {
      const uint64_t at = base_ + kUsed + 4 + uint64_t{8} * (used_ % size_);
      Used one{uint16_t(get<uint32_t>(at)), get<uint32_t>(at + 4), {}};
      Buffers& buffers = chains_.at(one.head);
      for (const auto& [gpa, length] : buffers.writable) {
        std::string bytes(std::min<size_t>(length, one.written - one.bytes.size()), '\0');
        (void)memory_.read(Gpa{gpa}, std::as_writable_bytes(std::span(bytes)));
        one.bytes += bytes;
      }
      free_.insert(free_.end(), buffers.places.begin(), buffers.places.end());
      buffers = {};
      all.push_back(std::move(one));
    }
    return all;
  }
  // The device has asked to be told of the next chain that is added.
  [[nodiscard]] bool notice_wanted() const { return (get<uint16_t>(base_ + kUsed) & 1) == 0; }
  // The same where event indices are agreed on.
  [[nodiscard]] bool notice_wanted_by_index() const {
    return get<uint16_t>(base_ + kUsed + 4 + uint64_t{8} * size_) == available_;
  }

private:
  static constexpr uint64_t kAvailable = 0x4000, kUsed = 0x8000, kBuffers = 0x10000, kBufferBytes = 16 << 20;
  struct Buffers {
    std::vector<uint16_t> places;
    std::vector<std::pair<uint64_t, uint32_t>> writable;
  };

  template <class Word>
  void put(uint64_t gpa, Word word) const {
    (void)memory_.write(Gpa{gpa}, std::as_bytes(std::span(&word, 1)));
  }
  template <class Word>
  [[nodiscard]] Word get(uint64_t gpa) const {
    Word word{};
    (void)memory_.read(Gpa{gpa}, std::as_writable_bytes(std::span(&word, 1)));
    return word;
  }
  // Round and round: what is in use is far less than there is.
  uint64_t take(uint32_t length) {
    if (next_ + length > kBufferBytes)
      next_ = 0;
    const uint64_t at = base_ + kBuffers + next_;
    next_ += length;
    return at;
  }

  const GuestMemory& memory_;
  const uint64_t base_;
  const uint16_t size_;
  std::deque<uint16_t> free_;
  std::vector<Buffers> chains_; // by head
  uint16_t available_ = 0;
  uint16_t used_ = 0;
  uint64_t next_ = 0;
};

} // namespace stopvisor::vmm::testing
