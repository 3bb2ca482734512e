// SPDX-License-Identifier: Apache-2.0
// The doorbell: proves that no port or MMIO access is lost or done twice, however often the guest is stopped.
//
// Each vCPU writes its own sequence 1, 2, 3, ... to a port and to an MMIO register of its own; whatever is not
// the last number plus one is counted. Reads are numbered by the device, and checked by the guest. A third register
// has the device's worker write guest memory by itself, so that a stop which does without workers is found out.
// guest/probe_abi.h is its data sheet.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>

#include "guest/probe_abi.h"
#include "vmm/bus.h"
#include "vmm/guest_memory.h"
#include "vmm/job_slots.h"
#include "vmm/state/device_state.h"
#include "vmm/worker_device.h"
#include "vmm/written_pages.h"

namespace stopvisor::vmm {

class DeviceWorker;

struct DoorbellCounts {
  uint64_t port_writes = 0; // accesses served, whatever their numbers
  uint64_t port_reads = 0;
  uint64_t mmio_writes = 0;
  uint64_t mmio_reads = 0;
  uint64_t lost = 0;    // numbers that were skipped
  uint64_t doubled = 0; // writes of a number that had been seen
  bool operator==(const DoorbellCounts&) const = default;
};

class Doorbell final : public WorkerDevice, public StatefulDevice {
public:
  // `memory` is where the mailboxes are, and `written` of it; both outlive the device.
  Doorbell(const GuestMemory& memory, WrittenPages& written);

  // Puts its three parts (signature port, port registers, MMIO registers) on the buses.
  [[nodiscard]] std::expected<void, Error> attach_to(Bus& ports, Bus& mmio);
  // Who calls do_job(). CONTEXT: once, before a vCPU runs; the worker outlives them.
  void use_worker(DeviceWorker& worker) noexcept { worker_ = &worker; }
  // Writes one number that was rung for into that vCPU's mailbox, where guest memory has one.
  [[nodiscard]] bool do_job() noexcept override;

  void save_state(StateWriter& to) const override;
  void restore_state(StateReader& from) override;

  // One vCPU's counts; all zero for a number from probe::kMaxCpus on. CONTEXT: any thread.
  [[nodiscard]] DoorbellCounts counts(uint32_t cpu) const;
  [[nodiscard]] DoorbellCounts total() const;

private:
  // One vCPU's registers. Its own vCPU alone uses them, but a hostile guest may not stick to that.
  struct alignas(64) Registers {
    mutable std::mutex lock; // a leaf
    DoorbellCounts counts;
    uint64_t last_port = 0; // sequence numbers last written
    uint64_t last_mmio = 0;
  };

  class Signature final : public BusDevice {
  public:
    [[nodiscard]] std::string_view name() const noexcept override { return "doorbell signature"; }
    void read(uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(uint64_t offset, std::span<const std::byte> data) noexcept override;
  };

  // 4 bytes a vCPU.
  class Ports final : public BusDevice {
  public:
    explicit Ports(Doorbell& bell) : bell_(bell) {}
    [[nodiscard]] std::string_view name() const noexcept override { return "doorbell ports"; }
    void read(uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(uint64_t offset, std::span<const std::byte> data) noexcept override;
    void reset() noexcept override { bell_.reset(); }

  private:
    Doorbell& bell_;
  };
  // 0x40 bytes a vCPU.
  class Mmio final : public BusDevice {
  public:
    explicit Mmio(Doorbell& bell) : bell_(bell) {}
    [[nodiscard]] std::string_view name() const noexcept override { return "doorbell MMIO"; }
    void read(uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(uint64_t offset, std::span<const std::byte> data) noexcept override;

  private:
    Doorbell& bell_;
  };

  void reset() noexcept;
  void ring(uint32_t cpu, uint64_t number) noexcept;

  const GuestMemory& memory_;
  WrittenPages& written_;
  DeviceWorker* worker_ = nullptr;
  JobSlots<probe::kMaxCpus> jobs_;
  std::unique_ptr<std::array<Registers, probe::kMaxCpus>> cpus_;
  Signature signature_;
  Ports ports_{*this};
  Mmio mmio_{*this};
};

} // namespace stopvisor::vmm
