// SPDX-License-Identifier: Apache-2.0
// A port that gives the frames a test has put there (or refuses one of them), keeps those it is sent, and is full
// or gone when it is told.
#pragma once

#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "vmm/frame_port.h"

namespace stopvisor::vmm::testing {

// The test's end; the device owns a FakePort that looks here.
struct Cable {
  std::deque<std::string> to_guest; // with headers
  std::vector<std::string> from_guest;
  bool full = false;
  bool gone = false;
  bool refuses = false;
  uint32_t offloads = ~0U; // as last set
  uint32_t looks = 0;      // how often somebody tried to receive
};

class FakePort final : public FramePort {
public:
  static constexpr int kFd = 77;                  // nobody polls it
  static constexpr const char* kBadFrame = "bad"; // that cannot be given
  explicit FakePort(Cable& cable) : cable_(cable) {}

  [[nodiscard]] int fd() const noexcept override { return kFd; }
  [[nodiscard]] Received receive(std::span<std::byte> to) const noexcept override {
    ++cable_.looks;
    if (cable_.gone)
      return {Outcome::kGone, 0};
    if (cable_.to_guest.empty())
      return {Outcome::kLater, 0};
    const std::string frame = std::move(cable_.to_guest.front());
    cable_.to_guest.pop_front();
    if (frame == kBadFrame)
      return {Outcome::kRefused, 0};
    const size_t bytes = std::min(frame.size(), to.size());
    std::memcpy(to.data(), frame.data(), bytes);
    return {Outcome::kDone, bytes};
  }
  [[nodiscard]] Outcome send(std::span<const iovec> parts) const noexcept override {
    if (cable_.gone)
      return Outcome::kGone;
    if (cable_.full)
      return Outcome::kLater;
    if (cable_.refuses)
      return Outcome::kRefused;
    std::string frame;
    for (const iovec& part : parts)
      frame.append(static_cast<const char*>(part.iov_base), part.iov_len);
    cable_.from_guest.push_back(std::move(frame));
    return Outcome::kDone;
  }
  [[nodiscard]] bool set_offloads(uint32_t offloads) const noexcept override {
    cable_.offloads = offloads;
    return true;
  }

private:
  Cable& cable_;
};

} // namespace stopvisor::vmm::testing
