// SPDX-License-Identifier: Apache-2.0
// The state of a virtio device's registers and queues: saved between two jobs, restored into a device as it was
// made.
#include "vmm/virtio/mmio.h"

namespace stopvisor::vmm::virtio {
namespace {

constexpr uint32_t kStatusBits = kAcknowledge | kDriver | kDriverOk | kFeaturesOk | kNeedsReset | kFailed;
constexpr uint32_t kCauses = 3; // of an interrupt

} // namespace

// CONTEXT: the worker is between two jobs, so whatever was taken from a queue is back in it or published.
void Mmio::save_state(StateWriter& to) const {
  const std::lock_guard guard(lock_);
  put_fields(to, device_.type(), device_features_select_, driver_features_select_, driver_features_, queue_select_,
             status(), interrupt_status_.load(std::memory_order_acquire), // VS2
             config_generation_.load(std::memory_order_acquire));         // VS3
  to.put(static_cast<uint32_t>(settings_.size()));
  for (size_t queue = 0; queue < settings_.size(); ++queue) {
    const QueueSetting& setting = settings_[queue];
    const Queue::Position at = queues_[queue]->position();
    put_fields(to, setting.size, setting.descriptors, setting.available, setting.used, setting.ready,
               at.next_available, at.next_used, at.notices_off, at.broken);
  }
}

void Mmio::restore_state(StateReader& from) {
  const std::lock_guard guard(lock_);
  uint32_t type = 0;
  uint32_t status = 0;
  uint32_t causes = 0;
  uint32_t generation = 0;
  uint32_t queues = 0;
  get_fields(from, type, device_features_select_, driver_features_select_, driver_features_, queue_select_, status,
             causes, generation, queues);
  if (type != device_.type() || queues != settings_.size())
    return from.refuse("it is of another device than the one that is there");
  from.refuse_unless((driver_features_ & ~offered_) == 0 || (status & kFeaturesOk) == 0,
                     "the guest's driver uses a feature that the device here does not have");
  from.refuse_unless((status & ~kStatusBits) == 0 && (causes & ~kCauses) == 0, "a status that cannot be");
  from.refuse_unless((status & kDriverOk) == 0 || (status & kFeaturesOk) != 0, "a driver that took no features");
  for (uint32_t queue = 0; queue < queues; ++queue) {
    QueueSetting& setting = settings_[queue];
    Queue::Position at;
    get_fields(from, setting.size, setting.descriptors, setting.available, setting.used, setting.ready,
               at.next_available, at.next_used, at.notices_off, at.broken);
    from.refuse_unless(!setting.ready || (status & kFeaturesOk) != 0, "a queue without features");
    if (!setting.ready)
      continue;
    queues_[queue]->start(layout_of(queue)); // where it cannot be, it is broken, as for a driver
    queues_[queue]->go_on_from(at);
    if (at.broken)
      broken_.store(queues_[queue]->broken(), std::memory_order_relaxed); // a literal
  }
  status_.store(status, std::memory_order_release);                // VS1
  interrupt_status_.store(causes, std::memory_order_release);      // VS2
  config_generation_.store(generation, std::memory_order_release); // VS3
  if ((status & kDriverOk) != 0)
    device_.start(driver_features_, queues_);
}

void Mmio::raise_again() const {
  if (interrupt_status_.load(std::memory_order_acquire) != 0) // VS2
    around_.interrupt();
}

} // namespace stopvisor::vmm::virtio
