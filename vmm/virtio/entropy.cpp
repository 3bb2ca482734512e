// SPDX-License-Identifier: Apache-2.0
#include "vmm/virtio/entropy.h"

#include <sys/random.h>

#include <algorithm>
#include <array>

namespace stopvisor::vmm::virtio {
namespace {

constexpr std::array<uint16_t, 1> kQueueSizes{64};
// A longer buffer is filled up to here, which a driver has to expect (5.4.6.1): about 1 ms of the host's time.
constexpr uint64_t kMaxBytes = 64 << 10;

} // namespace

std::span<const uint16_t> Entropy::queue_sizes() const noexcept {
  return kQueueSizes;
}

uint32_t Entropy::handle(const Chain& request) noexcept {
  Parts parts;
  uint32_t written = 0;
  for (const iovec& part : cut(request.writable(), 0, kMaxBytes, parts)) {
    // Blocks in the first seconds of a host's life at most, which are over when it runs VMs.
    const ssize_t got = ::getrandom(part.iov_base, part.iov_len, 0);
    if (got > 0)
      written += static_cast<uint32_t>(got);
    if (got != static_cast<ssize_t>(part.iov_len)) // a signal: what there is will do
      break;
  }
  return written;
}

size_t count_entropy(const VmConfig& config) {
  return config.kernel.empty() ? 0 : 1;
}

std::expected<std::unique_ptr<Device>, Error> make_entropy(const VmConfig& /*config*/, size_t /*index*/) {
  return std::make_unique<Entropy>();
}

Properties describe_entropy(const VmConfig& /*config*/, size_t /*index*/) {
  return {};
}

std::expected<void, Error> add_entropy(VmConfig& /*config*/, const Properties& /*properties*/) {
  return {}; // there is one anyway
}

} // namespace stopvisor::vmm::virtio
