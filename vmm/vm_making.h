// SPDX-License-Identifier: Apache-2.0
// What a thread makes of KVM's part of a machine while others put memory into it: the VM, whose memory slots take
// milliseconds where memory is large, and then the vCPUs, together with whoever waits for them. Private to vm*.cpp.
//
//   the thread:  open() ──▶ opened ──▶ set_up() ──▶ end
//   who waits:   lists, memory ... await_opened() ──▶ devices ──▶ set_up() ──▶ await_end()
//
// docs/adr/0021-restore-on-demand.md has the times.
#pragma once

#include <atomic>
#include <cstdint>
#include <expected>
#include <future>
#include <latch>
#include <memory>
#include <mutex>
#include <vector>

#include "vmm/vm_parts.h"

namespace stopvisor::vmm {

struct Vm::Parts::Making {
  // `parts` outlives the object.
  Making(Parts& parts, std::vector<std::unique_ptr<virtio::Device>> its_devices);
  // Waits for the thread.
  ~Making();
  Making(const Making&) = delete;
  Making& operator=(const Making&) = delete;

  // Starts the thread; where the host has none, await_opened() does its work.
  void begin();
  // What KVM can give a vCPU. CONTEXT: the thread and who waits; the second finds it read.
  [[nodiscard]] std::expected<void, Error> read_lists();
  // Until KVM has the VM and all vCPUs. RETURNS: whether it has; why not is await_end()'s. CONTEXT: who waits.
  [[nodiscard]] bool await_opened();
  // Sets up vCPUs until all are. The first error keeps the other from beginning one more. CONTEXT: the thread, and
  // who waits after await_opened(). RETURNS: errors of Parts::make_vcpu().
  [[nodiscard]] std::expected<void, Error> set_up();
  // No more of them. CONTEXT: as set_up().
  void call_off() noexcept;
  // RETURNS: all vCPUs, by number, or the first error. CONTEXT: who waits; last.
  [[nodiscard]] std::expected<std::vector<std::unique_ptr<Vcpu>>, Error> await_end();

  std::vector<std::unique_ptr<virtio::Device>> devices; // not attached yet; of who waits

private:
  [[nodiscard]] std::expected<void, Error> run() noexcept;
  [[nodiscard]] std::expected<void, Error> open();

  Parts& parts_;
  std::mutex lists_lock_; // a leaf
  std::latch opened_{1};
  bool is_open_ = false; // before the latch goes down
  std::vector<KvmVcpu> open_vcpus_;
  std::vector<std::expected<std::unique_ptr<Vcpu>, Error>> vcpus_; // each set up by one of the two
  std::atomic<uint32_t> next_{0};                                  // to set up; relaxed: see set_up()
  std::future<std::expected<void, Error>> thread_;                 // last: it has ended before the others go
};

} // namespace stopvisor::vmm
