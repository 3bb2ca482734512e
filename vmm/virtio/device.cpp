// SPDX-License-Identifier: Apache-2.0
#include "vmm/virtio/device.h"

namespace stopvisor::vmm::virtio {

bool RequestDevice::serve(Queues queues) noexcept {
  for (const auto& queue : queues)
    if (queue->next(chain_)) {
      const uint32_t written = handle(chain_);
      queue->put(chain_, written);
      queue->publish();
      return true;
    }
  bool more = false;
  for (const auto& queue : queues)
    more |= queue->ask_for_notice();
  return more;
}

} // namespace stopvisor::vmm::virtio
