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
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "stopper/native.h"
#include "vmm/device_counter.h"
#include "vmm/devices/doorbell.h"
#include "vmm/disk_config.h"
#include "vmm/error.h"
#include "vmm/freeze_place.h"
#include "vmm/guest_memory.h"
#include "vmm/net_config.h"
#include "vmm/register_wishes.h"
#include "vmm/registers.h"
#include "vmm/restore_choices.h"
#include "vmm/state/section.h"
#include "vmm/test_hooks.h"
#include "vmm/written_pages.h"

namespace stopvisor::vmm {

class AbsentMemory;
class DirtyLog;
class MemoryOrigin;

enum class SerialTarget { kTerminal, kFile, kNone };

struct VmConfig {
  std::string name;
  uint32_t cpus = 1;     // to start with
  uint32_t max_cpus = 0; // as many as there may be; 0: as many as cpus, 32 where KVM takes that many
  uint64_t memory_bytes = 256ULL << 20;
  MemoryBacking backing = MemoryBacking::kAnonymous;
  std::string kernel; // path of a PVH ELF or a Linux bzImage; empty: the built-in probe guest
  std::string initrd; // path, may be empty
  std::string cmdline;
  std::vector<DiskConfig> disks; // in the order of their numbers
  std::vector<NetConfig> nets;   // network devices, in the order of their numbers
  SerialTarget serial = SerialTarget::kNone;
  std::string serial_path;     // for kFile
  bool start_held = false;     // one hold is taken before the first guest instruction
  bool bare = false;           // nothing is booted: restore_state() and the caller's memory take the place of it
  bool disks_unlocked = false; // their images are opened without a lock: lock_disks() before a vCPU runs
};

// How a guest's life ended.
enum class EndKind {
  kPowerOff,    // the guest switched itself off
  kRequested,   // request_end()
  kCrash,       // the guest reported a crash through the power device
  kTripleFault, // KVM_EXIT_SHUTDOWN
  kVmmError,    // KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_FAIL_ENTRY, an ioctl that failed
  kMigrated,    // it goes on elsewhere; the message says where
};

struct VmEnd {
  EndKind kind = EndKind::kRequested;
  // kCrash, kTripleFault, kVmmError: names vCPU, reason, registers and the bytes at RIP, several lines. kMigrated:
  // where the guest went. Else empty.
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

// A virtio device, read without stopping it.
struct DeviceStatus {
  std::string name; // its worker's as well
  uint32_t slot = 0;
  bool driven = false;                 // a driver in the guest has taken it
  uint64_t requests = 0;               // chains of buffers given back to the driver, since the VM started
  std::string broken;                  // why it rests until the driver resets it; "" where it does not
  std::string trouble;                 // what of the host keeps it from its work; "" where nothing does
  std::vector<DeviceCounter> counters; // of its kind, since the VM started; each by itself
};

class Vm {
public:
  // Opens KVM, maps memory, loads the kernel, makes vCPUs and devices. No vCPU runs yet.
  // RETURNS: kUsage for a bad configuration, kFailed for what the host or a file refuses.
  [[nodiscard]] static std::expected<std::unique_ptr<Vm>, Error> create(VmConfig config);
  // The same of a bare machine, whose making goes on by a thread meanwhile: until await_made() one may look at its
  // config(), memory() and disk_images(), put memory into it (take_memory_from(), bring_needed()), use_hooks(),
  // request_end(), and destroy it. RETURNS: as create(), of what is known at once; kUsage where it is not bare.
  [[nodiscard]] static std::expected<std::unique_ptr<Vm>, Error> begin(VmConfig config);
  // Makes the rest of it. CONTEXT: after begin(); again at will, also of one that was created; blocks shortly.
  // RETURNS: as create(), each time the same; the VM is of no use after an error.
  [[nodiscard]] std::expected<void, Error> await_made();
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
  // From now on `listener` is told, in words for people, what happens to the VM: resets, keys. CONTEXT: before
  // start(). It is called on any thread, several at once, and may block for as long as writing a line takes.
  void tell_events_to(std::function<void(const std::string&)> listener);
  // Asks every vCPU thread to leave, also out of a hold. CONTEXT: any thread, also a vCPU thread's
  // device code; does not block. The first reason given wins.
  void request_end(VmEnd end) noexcept;
  // Presses the power button; the guest decides. CONTEXT: any thread, does not block.
  [[nodiscard]] std::expected<void, Error> press_power_button();
  // Presses Ctrl, Alt and Delete, and lets them go; the guest decides. CONTEXT: the same. RETURNS: kRefused where
  // the guest does not read its keyboard (one that is held does so later, once).
  [[nodiscard]] std::expected<void, Error> press_ctrl_alt_del();

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
  [[nodiscard]] std::vector<DeviceStatus> device_status() const;
  // The open images of the disks, in the order of config().disks; they live as long as the Vm. Under a stop nobody
  // of this Vm writes to them, and no request is half done. CONTEXT: any thread; only to be read.
  [[nodiscard]] std::vector<int> disk_images() const;
  // How often the guest has reset itself. CONTEXT: any thread.
  [[nodiscard]] uint64_t resets() const noexcept;
  // The device by which it asked for the last one, "" before the first. CONTEXT: any thread.
  [[nodiscard]] std::string last_reset_by() const;
  // Whether the guest's kernel has said that it panicked since it started last, and how often it has since the VM
  // started. CONTEXT: any thread.
  [[nodiscard]] bool panicked() const noexcept;
  [[nodiscard]] uint64_t panics() const noexcept;
  // How often Ctrl-Alt-Del was pressed. CONTEXT: any thread.
  [[nodiscard]] uint64_t ctrl_alt_dels() const noexcept;
  [[nodiscard]] DoorbellCounts doorbell_counts() const; // of all vCPUs since the last reset
  [[nodiscard]] DoorbellCounts doorbell_counts(uint32_t cpu) const;
  [[nodiscard]] const GuestMemory& memory() const noexcept;
  // Where whoever writes guest memory from the host notes it. CONTEXT: any thread.
  [[nodiscard]] WrittenPages& written_pages() noexcept;
  // Where whoever freezes guest memory is found by those who throw it away. CONTEXT: any thread.
  [[nodiscard]] FreezePlace& freeze_place() noexcept;
  // The last 64 KiB the guest sent to its serial port. CONTEXT: any thread.
  [[nodiscard]] std::vector<std::byte> console_log() const;
  // Serves a client at the serial port, at the stream socket `fd`, which has sent `early` already: gives it what
  // console_log() has and what follows, and the guest what the client sends; until it hangs up, or the VM has ended
  // and the client has everything. CONTEXT: any thread of nobody else's; blocks. RETURNS: kFailed where the host
  // has no descriptors.
  [[nodiscard]] std::expected<void, Error> serve_console(int fd, std::span<const std::byte> early);
  // Flattened (DTB), as the guest was told when it started last. CONTEXT: any thread.
  [[nodiscard]] std::vector<std::byte> device_tree() const;
  [[nodiscard]] stopper::StopService& stops() noexcept;
  [[nodiscard]] stopper::StopMachine& stop_machine() noexcept;

  // Who will want registers under stops to come says so first, and takes it back. CONTEXT: any thread.
  [[nodiscard]] RegisterWishes& register_wishes() noexcept;
  // One vCPU's registers. CONTEXT: under a stop only (from a callback of stops().run()).
  // RETURNS: kUsage for a vCPU that does not exist, kFailed where KVM refuses.
  // `with_activity`: as KvmVcpu::registers() has it.
  [[nodiscard]] std::expected<Registers, Error> registers(uint32_t cpu, bool with_activity = true) const;
  // One vCPU's time stamp counter. CONTEXT and RETURNS: the same.
  [[nodiscard]] std::expected<uint64_t, Error> tsc(uint32_t cpu) const;

  // Everything of the machine but its memory: docs/explanation/state.md. Twice in one hold it is the same, byte for
  // byte, unless something reached the machine from outside in between (a key, a packet); its clocks are of the
  // first time. CONTEXT: under a stop only (from a callback of stops().run()).
  // RETURNS: kRefused where the guest itself uses virtualisation, kBusy where a reset is due, kFailed, naming the
  // ioctl.
  [[nodiscard]] std::expected<std::vector<StateSection>, Error> save_state();
  // Makes this machine the one that was saved. It must have been created `bare`, with as many vCPUs, as much memory
  // and the same devices (where the machine's description is among the sections, all differences are named), and
  // guest memory must be in place, or come on touch (bring_needed() is called). A section of patches is the
  // caller's, and passed over. CONTEXT: once, before start(). `sections` may be anything. RETURNS: kFailed, kUsage
  // or kRefused, naming the section, ioctl or processor feature; the VM is of no use then.
  [[nodiscard]] std::expected<void, Error> restore_state(std::span<const StateSection> sections,
                                                         RestoreChoices choices = {});

  // Guest memory of a bare machine, in place of zeros. CONTEXT, these two: once, before start() and anything else
  // that looks at it. The VM is of no use after an error. What `origin` has, each block when it is touched:
  // AbsentMemory tells of `failed`, and of errors.
  [[nodiscard]] std::expected<void, Error> take_memory_from(std::unique_ptr<MemoryOrigin> origin,
                                                            std::function<void(const Error&)> failed);
  // What a file has: GuestMemory::map_file().
  [[nodiscard]] std::expected<void, Error> map_memory(int fd, std::span<const uint64_t> offsets);
  // Brings in, of memory that comes on touch, what restoring a state needs: where the VM generation ID is written,
  // and what KVM reads and writes for a vCPU; nobody could tell KVM that a page is bad. For who has time for it
  // before restore_state(). CONTEXT: before that; blocks while it is read. `sections` are those to be restored, and
  // may be anything. RETURNS: the origin's errors, kFailed, naming the section.
  [[nodiscard]] std::expected<void, Error> bring_needed(std::span<const StateSection> sections);
  // Null where all memory was always there. CONTEXT: any thread.
  [[nodiscard]] AbsentMemory* absent_memory() noexcept;

  // ---- migration (tools/migrate) ------------------------------------------------------------------------------

  // From now on it is known which pages are written, until the object goes, which it does before the Vm.
  // CONTEXT: any thread, not under a stop. RETURNS: kBusy where somebody logs already, kFailed, naming the ioctl.
  [[nodiscard]] std::expected<std::unique_ptr<DirtyLog>, Error> log_dirty_pages(const std::string& operation);
  // What a machine must have to take this one's state: the sections that describe machine and processors.
  // CONTEXT: under a stop only. RETURNS: as save_state().
  [[nodiscard]] std::expected<std::vector<StateSection>, Error> save_requirements();
  // Whether this machine, bare and not started, meets them; nothing changes. `sections` may be anything.
  // RETURNS: as restore_state(), naming each difference of the machine, or the processor feature that is missing.
  [[nodiscard]] std::expected<void, Error> check_requirements(std::span<const StateSection> sections) const;
  // Locks the images of all disks, as Vm::create() does without `disks_unlocked`: all of them or none.
  // CONTEXT: any thread; does not wait for whoever has a lock. RETURNS: kBusy, naming the image that is in use.
  [[nodiscard]] std::expected<void, Error> lock_disks();
  // Gives the locks back: who is not going to write any more lets others. CONTEXT: under a stop, or when the VM has
  // ended.
  void unlock_disks() noexcept;
  // What was written to the disks is where another host can read it. CONTEXT: any thread; blocks on the disks.
  // RETURNS: kFailed, naming the image.
  [[nodiscard]] std::expected<void, Error> flush_disks();
  // Tells the networks behind all taps where the guest's addresses are now: a RARP broadcast from each (RFC 903, as
  // a switch learns by). Once; who wants to be sure repeats it. CONTEXT: any thread; does not block.
  void announce_networks() noexcept;
  // Shows a line of ours to whoever watches the serial port; the guest does not see it. CONTEXT: under a stop, in
  // which the guest says nothing.
  void write_to_console(const std::string& line) noexcept;

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
