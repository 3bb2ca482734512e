// SPDX-License-Identifier: Apache-2.0
// One virtual machine: what it is made of, its life from create to end, and how others reach it.
//
// The Vm owns the KVM objects, guest memory, devices and vCPU threads, and the stop service through which
// everybody else touches a running guest. The control socket, the command's benchmark and the tests are
// its callers.
#pragma once

#include <chrono>
#include <cstdint>
#include <expected>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "stopper/native.h"
#include "vmm/devices/doorbell.h"
#include "vmm/error.h"
#include "vmm/guest_memory.h"
#include "vmm/registers.h"
#include "vmm/test_hooks.h"

namespace stopvisor::vmm {

enum class SerialTarget { kTerminal, kFile, kNone };

struct VmConfig {
  std::string name;
  uint32_t cpus = 1;     // to start with
  uint32_t max_cpus = 0; // as many as there may be; 0: as many as cpus, 32 where KVM takes that many
  uint64_t memory_bytes = 256ULL << 20;
  MemoryBacking backing = MemoryBacking::kAnonymous;
  std::string kernel; // path of a PVH ELF; empty: the built-in probe guest
  std::string initrd; // path, may be empty
  std::string cmdline;
  SerialTarget serial = SerialTarget::kNone;
  std::string serial_path; // for kFile
  bool start_held = false; // one hold is taken before the first guest instruction
};

// How a guest's life ended.
enum class EndKind {
  kPowerOff,    // the guest switched itself off
  kRequested,   // request_end()
  kCrash,       // the guest reported a crash through the power device
  kTripleFault, // KVM_EXIT_SHUTDOWN
  kVmmError,    // KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_FAIL_ENTRY, an ioctl that failed
};

struct VmEnd {
  EndKind kind = EndKind::kRequested;
  // For the last three: names vCPU, reason, registers and the bytes at RIP, several lines. Else empty.
  std::string message;
};

enum class VmState { kCreated, kRunning, kHeld, kEnded };

enum class VcpuPresence {
  kOnline,
  kLeaving, // online, and the guest is asked to give it up
  kOffline, // out of the machine; its thread waits
};

// What one vCPU is doing, read without stopping it.
struct VcpuStatus {
  uint32_t cpu = 0;
  VcpuPresence presence = VcpuPresence::kOnline;
  int thread_id = 0;     // host TID
  uint64_t exits = 0;    // KVM_RUN returns
  std::string last_exit; // name of the last exit reason, "" before the first
};

// The same of a device worker.
struct WorkerStatus {
  std::string name;
  stopper::CpuId participant = 0; // its number in stop reports
  int thread_id = 0;              // host TID, 0 where it has left
  uint64_t jobs_done = 0;
};

class Vm {
public:
  // Opens KVM, maps memory, loads the kernel, makes vCPUs and devices. No vCPU runs yet.
  // RETURNS: kUsage for a bad configuration, kFailed for what the host or a file refuses.
  [[nodiscard]] static std::expected<std::unique_ptr<Vm>, Error> create(VmConfig config);
  // Ends the VM if it still runs, joins every thread.
  ~Vm();
  Vm(const Vm&) = delete;
  Vm& operator=(const Vm&) = delete;

  // Starts the vCPU threads (held from the first instruction on with start_held: stops().holds() is 1 then). Call
  // once. A stop that is held already (asked for before there was anything to stop) delays the start until it is
  // over. CONTEXT: no vCPU thread, no callback; blocks shortly.
  // RETURNS: kFailed where the host has no more threads, or the VM was ended already. The VM has ended then.
  [[nodiscard]] std::expected<void, Error> start();

  // Blocks until the guest has ended, then joins the vCPU threads. CONTEXT: not a vCPU thread, nor one inside a
  // callback; several threads may wait.
  VmEnd wait_for_end();
  // Asks every vCPU thread to leave, also out of a hold. CONTEXT: any thread, also a vCPU thread's
  // device code; does not block. The first reason given wins.
  void request_end(VmEnd end) noexcept;
  // Presses the power button; the guest decides. CONTEXT: any thread, does not block.
  [[nodiscard]] std::expected<void, Error> press_power_button();

  // Adds a vCPU, brings it online and tells the guest, which starts it if it will.
  // CONTEXT, these three: any thread but a vCPU's or one inside a callback; one at a time, the others wait; blocks
  // until `deadline`. A VM that is held as long makes them kBusy.
  // RETURNS: its number; kRefused where max_cpus exist, kBusy where the deadline passed, kFailed where the host or
  // KVM refuses or the VM does not run. Nothing has changed then.
  [[nodiscard]] std::expected<uint32_t, Error> add_cpu(std::chrono::steady_clock::time_point deadline);
  // Asks the guest to give up a vCPU, and takes it out of the machine. Its thread stays, and waits. With `force`,
  // also where the guest has not given it up in half of the time: that may well be the end of the guest.
  // RETURNS: whether it was taken by force; kUsage where there is no such vCPU, kRefused where it is offline or
  // number 0, kBusy where the guest did not give it up by `deadline`, or the VM was held; kFailed where the VM does
  // not run. The guest is asked to use it again then.
  [[nodiscard]] std::expected<bool, Error> offline_cpu(uint32_t cpu, std::chrono::steady_clock::time_point deadline,
                                                       bool force);
  // Brings a vCPU that is offline back, in the state that waits for INIT, and tells the guest.
  // RETURNS: kUsage where there is no such vCPU, kRefused where it is online, else as add_cpu().
  [[nodiscard]] std::expected<void, Error> online_cpu(uint32_t cpu, std::chrono::steady_clock::time_point deadline);

  [[nodiscard]] const VmConfig& config() const noexcept; // max_cpus is never 0 in it
  [[nodiscard]] VmState state() const noexcept;
  [[nodiscard]] uint32_t cpu_count() const noexcept; // that exist, online or not; they are numbered from 0
  [[nodiscard]] VcpuStatus vcpu_status(uint32_t cpu) const;
  [[nodiscard]] std::vector<WorkerStatus> worker_status() const;
  // How often the guest has reset itself. CONTEXT: any thread.
  [[nodiscard]] uint64_t resets() const noexcept;
  [[nodiscard]] DoorbellCounts doorbell_counts() const; // of all vCPUs since the last reset
  [[nodiscard]] DoorbellCounts doorbell_counts(uint32_t cpu) const;
  [[nodiscard]] const GuestMemory& memory() const noexcept;
  // Flattened (DTB), as the guest was told when it started last. CONTEXT: any thread.
  [[nodiscard]] std::vector<std::byte> device_tree() const;
  [[nodiscard]] stopper::StopService& stops() noexcept;
  [[nodiscard]] stopper::StopMachine& stop_machine() noexcept;

  // One vCPU's registers. CONTEXT: under a stop only (from a callback of stops().run()).
  // RETURNS: kUsage for a vCPU that does not exist, kFailed where KVM refuses.
  [[nodiscard]] std::expected<Registers, Error> registers(uint32_t cpu) const;
  // One vCPU's time stamp counter. CONTEXT and RETURNS: the same.
  [[nodiscard]] std::expected<uint64_t, Error> tsc(uint32_t cpu) const;

  // Human text of a stop that failed: names each straggler with vCPU, thread, last exit.
  // The object is the VM's name; kBusy where it may succeed later.
  [[nodiscard]] Error explain(const std::string& operation, const stopper::StopError& error) const;

  // Whether threads that are late for a stop may be lifted (they may, where the process has the right): off, to
  // measure what the lift is worth. CONTEXT: any thread; a stop under way may still go by what was.
  void allow_lifts(bool allowed) noexcept;

  // For tests: steps into the vCPU loops and kicks from now on; null: no more. See test_hooks.h for how long they
  // must live.
  void use_hooks(VcpuHooks* hooks) noexcept;

  struct Parts;

private:
  explicit Vm(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

} // namespace stopvisor::vmm
