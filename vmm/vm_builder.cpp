// SPDX-License-Identifier: Apache-2.0
// Vm::create() and begin(): check a configuration and build the machine from it, up to the point where it could
// run.
#include <unistd.h>

#include <algorithm>
#include <string>
#include <utility>

#include "guest/probe_abi.h"
#include "vmm/acpi/platform.h"
#include "vmm/kick_signal.h"
#include "vmm/kvm_system.h"
#include "vmm/virtio/device_table.h"
#include "vmm/vm_boot.h"
#include "vmm/vm_making.h"
#include "vmm/vm_wiring.h"

namespace stopvisor::vmm {
namespace {

// As many vCPUs as there may be where nobody says: room to grow at a cost of a few KiB.
constexpr uint32_t kRoomForCpus = 32;

// Every x86-64 CPU addresses 36 bits at least (KvmSystem::address_bits()): no need to ask.
constexpr uint64_t kTakenByAll = uint64_t{32} << 30;

Error wrong(const VmConfig& config, std::string reason) {
  return Error{"start VM", config.name, std::move(reason), Status::kUsage};
}

std::string gibibytes(uint64_t bytes) {
  return std::to_string(bytes >> 30) + " GiB";
}

std::expected<void, Error> check(const VmConfig& config, const KvmSystem& system) {
  if (config.cpus == 0)
    return std::unexpected(wrong(config, "a machine needs at least 1 vCPU"));
  if (config.max_cpus < config.cpus)
    return std::unexpected(wrong(config, "at most " + std::to_string(config.max_cpus) +
                                             " vCPUs are fewer than the " + std::to_string(config.cpus) +
                                             " it starts with"));
  if (config.max_cpus > system.max_cpus())
    return std::unexpected(wrong(config, std::to_string(config.max_cpus) +
                                             " vCPUs are more than this host's KVM gives one machine (at most " +
                                             std::to_string(system.max_cpus()) + ")"));
  if (config.memory_bytes > kTakenByAll && config.memory_bytes > system.max_memory_bytes())
    return std::unexpected(
        wrong(config, gibibytes(config.memory_bytes) +
                          " of memory are more than this host's KVM gives one machine (at most " +
                          gibibytes(system.max_memory_bytes()) + ")"));
  if (auto fine = check_nets(config.nets, config.name); !fine)
    return fine;
  if (!config.kernel.empty())
    return {};
  if (!config.initrd.empty())
    return std::unexpected(
        wrong(config, "the initrd " + config.initrd + " is for a kernel, and the built-in probe guest takes none"));
  if (config.max_cpus > probe::kMaxCpus)
    return std::unexpected(wrong(config, std::to_string(config.max_cpus) +
                                             " vCPUs are more than the built-in probe guest starts (at most " +
                                             std::to_string(probe::kMaxCpus) + ")"));
  if (config.memory_bytes != 0 && config.memory_bytes < probe::kMinMemoryBytes)
    return std::unexpected(wrong(config, "the built-in probe guest needs at least " +
                                             std::to_string(probe::kMinMemoryBytes >> 20) + " MiB of memory"));
  return {};
}

std::expected<std::unique_ptr<SerialOutput>, Error> open_output(const VmConfig& config) {
  switch (config.serial) {
  case SerialTarget::kTerminal:
    return SerialOutput::to_fd(STDOUT_FILENO);
  case SerialTarget::kFile:
    return SerialOutput::to_file(config.serial_path);
  case SerialTarget::kNone:
    break;
  }
  return nullptr;
}

} // namespace

Vm::Parts::Parts(VmConfig its_config, KvmSystem its_system, GuestMemory its_memory,
                 std::unique_ptr<SerialOutput> its_output)
    : config(std::move(its_config)), system(std::move(its_system)), memory(std::move(its_memory)),
      output(std::move(its_output)),
      serial(&console_ring, [this](bool level) { kvm.set_irq_line(kSerialGsi, level); }),
      power(requests_of("power device"),
            [this] { // an edge
              kvm.set_irq_line(probe::kPowerGsi, true);
              kvm.set_irq_line(probe::kPowerGsi, false);
            }),
      acpi_power(requests_of("ACPI register"),
                 [this] { // an edge
                   kvm.set_irq_line(acpi::kEventGsi, true);
                   kvm.set_irq_line(acpi::kEventGsi, false);
                 }),
      pvpanic([this](PanicEvent event) {
        tell(event == PanicEvent::kCrashLoaded ? "the guest's kernel panicked; its crash kernel takes over"
                                               : "the guest's kernel panicked");
      }),
      doorbell(memory, written_pages), cpu_device(config.max_cpus,
                                                  [this] { // an edge
                                                    kvm.set_irq_line(probe::kCpuGsi, true);
                                                    kvm.set_irq_line(probe::kCpuGsi, false);
                                                  }),
      keyboard(requests_of("keyboard controller"), [this](bool level) { kvm.set_irq_line(kKeyboardGsi, level); }),
      reset_control(requests_of("reset control register")), life([this] { let_out(); }),
      machine(config.max_cpus, *this, 1 + static_cast<uint32_t>(virtio::places(config).size())), stops(machine),
      vcpus(config.max_cpus) {}

std::expected<void, Error> Vm::Parts::attach_devices(std::vector<std::unique_ptr<virtio::Device>> devices) {
  if (auto done = ports.attach(kSerialPort, Serial16550::kPortCount, serial); !done)
    return done;
  if (auto done = ports.attach(probe::kPowerPort, kPowerPortBytes, power); !done)
    return done;
  if (auto done = ports.attach(kAcpiPowerPort, AcpiPower::kPortCount, acpi_power); !done)
    return done;
  if (auto done = ports.attach(kPvPanicPort, 1, pvpanic); !done)
    return done;
  if (auto done = keyboard.attach_to(ports); !done)
    return done;
  if (auto done = ports.attach(kResetControlPort, 1, reset_control); !done)
    return done;
  if (auto done = cpu_device.attach_to(ports); !done)
    return done;
  const DeviceWorker::Surroundings around{machine, hooks, life};
  workers.push_back(std::make_unique<DeviceWorker>("doorbell", machine.first_worker(), doorbell,
                                                   std::make_unique<FutexSleep>(), around));
  doorbell.use_worker(*workers.front());
  if (auto done = doorbell.attach_to(ports, mmio); !done)
    return done;
  for (auto& device : devices) {
    const auto participant = machine.first_worker() + static_cast<stopper::CpuId>(workers.size());
    auto slot = virtio::Slot::create(std::move(device), slots.size(), memory, written_pages);
    if (!slot)
      return std::unexpected(slot.error());
    auto& made = *slots.emplace_back(std::move(*slot));
    if (auto done = made.attach(mmio, kvm); !done)
      return done;
    workers.push_back(made.make_worker(participant, around));
  }
  return {};
}

Vm::Parts::~Parts() = default;

std::expected<void, Error> Vm::Parts::load(const BootFiles& files, std::span<const std::byte> tree) {
  const auto entry = load_vm(config, memory, files, wanted_cpus(), tree);
  if (!entry)
    return std::unexpected(entry.error());
  return std::visit([this](const auto& at) { return vcpus[0].thread.vcpu().set_entry(at); }, *entry);
}

std::expected<std::unique_ptr<Vm::Parts>, Error> Vm::Parts::begin(VmConfig config, BootFiles& files) {
  prepare_kick_signal();
  config.cmdline = boot_cmdline(config);
  auto system = KvmSystem::open_unread();
  if (!system)
    return std::unexpected(system.error());
  if (config.memory_bytes > kTakenByAll)
    if (auto read = system->read_lists(); !read)
      return std::unexpected(read.error());
  if (config.max_cpus == 0)
    config.max_cpus = std::max(config.cpus, std::min(kRoomForCpus, system->max_cpus()));
  if (auto checked = check(config, *system); !checked)
    return std::unexpected(checked.error());
  auto devices = virtio::make_devices(config);
  if (!devices)
    return std::unexpected(devices.error());
  if (!config.bare) {
    auto read = BootFiles::read(config);
    if (!read)
      return std::unexpected(read.error());
    files = *std::move(read);
  }
  auto memory = GuestMemory::create(config.memory_bytes, config.backing);
  if (!memory)
    return std::unexpected(memory.error());
  auto output = open_output(config);
  if (!output)
    return std::unexpected(output.error());
  auto parts =
      std::make_unique<Parts>(std::move(config), *std::move(system), *std::move(memory), *std::move(output));
  parts->making = std::make_unique<Making>(*parts, *std::move(devices));
  parts->making->begin();
  if (auto read = parts->making->read_lists(); !read)
    return std::unexpected(read.error());
  auto tree = describe_vm(parts->config, stopper::CpuMask::first_n(parts->config.cpus), parts->memory,
                          KvmVm::has_pit(parts->system), files);
  if (!tree)
    return std::unexpected(tree.error());
  parts->device_tree = *std::move(tree);
  return parts;
}

std::expected<void, Error> Vm::Parts::check_made(const char* operation) const {
  if (is_made)
    return {};
  return std::unexpected(not_made.value_or(Error{operation, config.name, "it is not made yet", Status::kUsage}));
}

std::expected<void, Error> Vm::Parts::await_made() {
  if (!making)
    return check_made("start VM");
  auto done = finish_making();
  making.reset();
  is_made = done.has_value();
  if (!done)
    not_made = done.error();
  return done;
}

std::expected<void, Error> Vm::Parts::finish_making() {
  if (making->await_opened()) {
    if (auto attached = attach_devices(std::move(making->devices)); !attached) {
      making->call_off();
      return attached;
    }
    if (auto set_up = making->set_up(); !set_up)
      return set_up;
  }
  auto vcpus_made = making->await_end();
  if (!vcpus_made)
    return std::unexpected(std::move(vcpus_made.error()));
  for (uint32_t cpu = 0; cpu < config.cpus; ++cpu) {
    vcpus.next() = std::move((*vcpus_made)[cpu]);
    vcpus.publish();
    cpu_device.add(cpu, false);
  }
  return kvm.begin_pit();
}

std::expected<std::unique_ptr<Vm>, Error> Vm::begin(VmConfig config) {
  if (!config.bare) // the caller would have it run what was never loaded
    return std::unexpected(wrong(config, "only a bare machine is begun"));
  BootFiles none;
  auto parts = Parts::begin(std::move(config), none);
  if (!parts)
    return std::unexpected(parts.error());
  return std::unique_ptr<Vm>(new Vm(*std::move(parts)));
}

std::expected<std::unique_ptr<Vm>, Error> Vm::create(VmConfig config) {
  BootFiles files;
  auto parts = Parts::begin(std::move(config), files);
  if (!parts)
    return std::unexpected(parts.error());
  if (auto made = (*parts)->await_made(); !made)
    return std::unexpected(made.error());
  if (!(*parts)->config.bare) { // or what is put into it goes on meanwhile
    if (auto there = (*parts)->kvm.await_pit(); !there)
      return std::unexpected(there.error());
    if (auto loaded = (*parts)->load(files, (*parts)->device_tree); !loaded)
      return std::unexpected(loaded.error());
  }
  return std::unique_ptr<Vm>(new Vm(*std::move(parts)));
}

} // namespace stopvisor::vmm
