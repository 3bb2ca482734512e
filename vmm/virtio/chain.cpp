// SPDX-License-Identifier: Apache-2.0
#include "vmm/virtio/chain.h"

#include <algorithm>
#include <cstring>

namespace stopvisor::vmm::virtio {

std::span<const iovec> cut(std::span<const iovec> buffers, uint64_t offset, uint64_t length,
                           Parts& parts) noexcept {
  size_t count = 0;
  for (const iovec& buffer : buffers) {
    if (length == 0)
      break;
    if (offset >= buffer.iov_len) {
      offset -= buffer.iov_len;
      continue;
    }
    const uint64_t bytes = std::min<uint64_t>(buffer.iov_len - offset, length);
    parts[count++] = {static_cast<std::byte*>(buffer.iov_base) + offset, bytes};
    length -= bytes;
    offset = 0;
  }
  return {parts.data(), count};
}

bool Chain::read(uint64_t offset, std::span<std::byte> to) const noexcept {
  if (offset > readable_bytes_ || to.size() > readable_bytes_ - offset)
    return false;
  Parts parts;
  for (const iovec& part : cut(readable(), offset, to.size(), parts)) {
    std::memcpy(to.data(), part.iov_base, part.iov_len);
    to = to.subspan(part.iov_len);
  }
  return true;
}

bool Chain::write(uint64_t offset, std::span<const std::byte> from) const noexcept {
  if (offset > writable_bytes_ || from.size() > writable_bytes_ - offset)
    return false;
  Parts parts;
  for (const iovec& part : cut(writable(), offset, from.size(), parts)) {
    std::memcpy(part.iov_base, from.data(), part.iov_len);
    from = from.subspan(part.iov_len);
  }
  return true;
}

} // namespace stopvisor::vmm::virtio
