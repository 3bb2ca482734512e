// SPDX-License-Identifier: Apache-2.0
// A virtio device in its place in a machine: on the bus, with its interrupt line, its notices and its worker.
//
// KVM takes over the two ways that are gone often: a driver's write to the notify register raises the worker's
// eventfd (ioeventfd) without the vCPU thread leaving the kernel, and the worker's interrupt is an eventfd that KVM
// turns into an edge (irqfd). Both belong to KVM's VM, and outlive resets of the guest.
#pragma once

#include <cstddef>
#include <expected>
#include <memory>

#include "vmm/bus.h"
#include "vmm/device_worker.h"
#include "vmm/guest_memory.h"
#include "vmm/kvm_vm.h"
#include "vmm/unique_fd.h"
#include "vmm/virtio/mmio.h"
#include "vmm/vm.h"
#include "vmm/worker_sleep.h"

namespace stopvisor::vmm::virtio {

class Slot {
public:
  // RETURNS: kFailed where the host has no more descriptors. `memory` and `written`, which is of it, outlive the
  // slot.
  [[nodiscard]] static std::expected<std::unique_ptr<Slot>, Error>
  create(std::unique_ptr<Device> device, size_t number, const GuestMemory& memory, WrittenPages& written);
  // Puts it on the bus and makes KVM pass notices and interrupts on. CONTEXT: once, before a vCPU runs.
  // RETURNS: kFailed.
  [[nodiscard]] std::expected<void, Error> attach(Bus& bus, const KvmVm& kvm);
  // Its worker, not started yet. CONTEXT: once, before a vCPU runs. The worker goes before the slot does.
  [[nodiscard]] std::unique_ptr<DeviceWorker> make_worker(stopper::CpuId participant,
                                                          DeviceWorker::Surroundings around);

  // CONTEXT: as StatefulDevice has it.
  [[nodiscard]] Mmio& transport() noexcept { return mmio_; }
  [[nodiscard]] Device& device() noexcept { return *device_; }

  // CONTEXT: any thread.
  [[nodiscard]] DeviceStatus status() const;

private:
  Slot(std::unique_ptr<Device> device, size_t number, const GuestMemory& memory, WrittenPages& written,
       UniqueFd interrupt, std::unique_ptr<DescriptorSleep> sleep);

  const std::unique_ptr<Device> device_;
  const size_t number_;
  const UniqueFd interrupt_;
  std::unique_ptr<DescriptorSleep> sleep_; // until the worker has it
  DescriptorSleep& worker_sleep_;
  Mmio mmio_;
};

} // namespace stopvisor::vmm::virtio
