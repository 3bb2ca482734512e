// SPDX-License-Identifier: Apache-2.0
// The last 64 KiB a serial port sent, for whoever comes to look, and what follows, for as long as they stay.
//
// Every VM has one, whatever else takes its output: a VM that was started with --detach has nothing but this. A
// reader never holds up the guest nor another reader: one that is too slow finds the oldest bytes gone, and is told
// how many.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "vmm/error.h"
#include "vmm/serial_output.h"
#include "vmm/unique_fd.h"

namespace stopvisor::vmm {

class ConsoleRing final : public ByteSink {
public:
  static constexpr size_t kBytes = 64 << 10;

  // `next` (may be null) is handed each byte too; it must outlive the ring.
  explicit ConsoleRing(ByteSink* next) : next_(next), ring_(kBytes) {}

  // Costs one write(2) to an eventfd for each reader that waits. CONTEXT: vCPU threads.
  void put(std::byte byte) noexcept override;
  // For readers alone: what is not the guest's own. CONTEXT: any thread.
  void keep(std::byte byte) noexcept;
  // Nothing more comes: readers are told. CONTEXT: any thread.
  void close() noexcept;
  // All that is kept. CONTEXT: any thread.
  [[nodiscard]] std::vector<std::byte> kept() const;

  struct Step {
    size_t bytes = 0;   // moved to the caller
    uint64_t lost = 0;  // overwritten before they could be read; they came before those
    bool ended = false; // nothing is left, and nothing comes
  };
  // Reads from the oldest byte that is kept on. CONTEXT: one thread at a time; the ring must outlive it.
  class Reader {
  public:
    // RETURNS: kFailed where the host has no descriptor left.
    [[nodiscard]] static std::expected<std::unique_ptr<Reader>, Error> start(ConsoleRing& ring);
    ~Reader();
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;

    [[nodiscard]] Step read(std::span<std::byte> to) noexcept;
    // Readable once there is news, after a read() that moved nothing.
    [[nodiscard]] int event_fd() const noexcept { return event_.get(); }

  private:
    friend class ConsoleRing;
    Reader(ConsoleRing& ring, UniqueFd event) : ring_(ring), event_(std::move(event)) {}

    ConsoleRing& ring_;
    const UniqueFd event_;
    // Under the ring's lock:
    uint64_t position_ = 0; // of the next byte to read
    bool waits_ = false;    // wants its event set
  };

private:
  // CONTEXT, these three: under lock_.
  [[nodiscard]] uint64_t begin() const noexcept { return end_ > kBytes ? end_ - kBytes : 0; }
  [[nodiscard]] size_t copy(uint64_t from, std::span<std::byte> to) const noexcept;
  void wake_readers() noexcept;

  ByteSink* const next_;
  mutable std::mutex lock_; // a leaf; guards what follows
  std::vector<std::byte> ring_;
  uint64_t end_ = 0; // bytes ever put; byte n lies at n % kBytes
  bool closed_ = false;
  std::vector<Reader*> readers_;
};

} // namespace stopvisor::vmm
