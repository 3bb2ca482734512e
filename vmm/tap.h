// SPDX-License-Identifier: Apache-2.0
// A tap: the host's end of a guest's network cable, as a file of Ethernet frames.
//
// Each frame is preceded by a virtio_net_hdr of 12 bytes (virtio 1.2, 5.1.6), which the kernel writes and checks,
// so that checksums and segmentation are left to whoever does them cheapest. Source of the ioctls:
// Documentation/networking/tuntap.rst and drivers/net/tun.c of Linux.
#pragma once

#include <cstdint>
#include <expected>
#include <string>

#include "vmm/error.h"
#include "vmm/frame_port.h"
#include "vmm/unique_fd.h"

namespace stopvisor::vmm {

class Tap final : public FramePort {
public:
  static constexpr uint32_t kHeaderBytes = 12;

  // Opens the tap `name`; makes one, which goes with the descriptor, where there is none and the process may.
  // CONTEXT: any thread, in the network namespace of the interface; blocks shortly.
  // RETURNS: kUsage for what cannot be an interface's name, kBusy where another program has the tap, kFailed where
  // there is none to be had, naming what to do.
  [[nodiscard]] static std::expected<Tap, Error> open(const std::string& name);

  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  // The interface's, when it was opened: it limits a frame without its Ethernet header.
  [[nodiscard]] uint32_t mtu() const noexcept { return mtu_; }
  // Whether open() made it.
  [[nodiscard]] bool is_new() const noexcept { return is_new_; }

  [[nodiscard]] int fd() const noexcept override { return fd_.get(); }
  [[nodiscard]] Received receive(std::span<std::byte> to) const noexcept override;
  // An interface that is down refuses frames.
  [[nodiscard]] Outcome send(std::span<const iovec> parts) const noexcept override;
  [[nodiscard]] bool set_offloads(uint32_t offloads) const noexcept override;

private:
  Tap(UniqueFd fd, std::string name, uint32_t mtu, bool is_new) noexcept;

  UniqueFd fd_;
  std::string name_;
  uint32_t mtu_;
  bool is_new_;
};

// Whether an interface can have the name. RETURNS: kUsage.
[[nodiscard]] std::expected<void, Error> check_interface_name(const std::string& name);

} // namespace stopvisor::vmm
