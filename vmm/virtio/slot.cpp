// SPDX-License-Identifier: Apache-2.0
#include "vmm/virtio/slot.h"

#include <utility>

#include "vmm/event_fd.h"
#include "vmm/virtio/device_table.h"

namespace stopvisor::vmm::virtio {

std::expected<std::unique_ptr<Slot>, Error> Slot::create(std::unique_ptr<Device> device, size_t number,
                                                         const GuestMemory& memory, WrittenPages& written) {
  auto interrupt = make_event(device->name());
  if (!interrupt)
    return std::unexpected(interrupt.error());
  auto sleep = DescriptorSleep::create();
  if (!sleep)
    return std::unexpected(sleep.error());
  return std::unique_ptr<Slot>(
      new Slot(std::move(device), number, memory, written, std::move(*interrupt), std::move(*sleep)));
}

Slot::Slot(std::unique_ptr<Device> device, size_t number, const GuestMemory& memory, WrittenPages& written,
           UniqueFd interrupt, std::unique_ptr<DescriptorSleep> sleep)
    : device_(std::move(device)), number_(number), interrupt_(std::move(interrupt)), sleep_(std::move(sleep)),
      worker_sleep_(*sleep_), mmio_(*device_, {memory, written, [this] { worker_sleep_.wake(); },
                                               [this] { raise_event(interrupt_.get()); }}) {}

std::expected<void, Error> Slot::attach(Bus& bus, const KvmVm& kvm) {
  if (auto done = bus.attach(slot_gpa(number_).value, kSlotBytes, mmio_); !done)
    return done;
  if (auto done = kvm.add_irqfd(slot_gsi(number_), interrupt_.get()); !done)
    return done;
  // Any value: the worker looks at all queues.
  return kvm.add_ioeventfd(Gpa{slot_gpa(number_).value + kQueueNotify}, sizeof(uint32_t), worker_sleep_.event());
}

std::unique_ptr<DeviceWorker> Slot::make_worker(stopper::CpuId participant, DeviceWorker::Surroundings around) {
  return std::make_unique<DeviceWorker>(device_->name(), participant, mmio_, std::move(sleep_), around);
}

DeviceStatus Slot::status() const {
  return {device_->name(),
          static_cast<uint32_t>(number_),
          (mmio_.status() & kDriverOk) != 0,
          mmio_.chains_done(),
          mmio_.broken(),
          device_->trouble(),
          device_->counters()};
}

} // namespace stopvisor::vmm::virtio
