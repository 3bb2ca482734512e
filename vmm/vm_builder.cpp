// SPDX-License-Identifier: Apache-2.0
// Vm::create(): checks a configuration and builds the machine from it, up to the point where it could run.
#include <unistd.h>

#include <algorithm>
#include <string>
#include <utility>

#include "guest/probe_abi.h"
#include "vmm/kick_signal.h"
#include "vmm/kvm_system.h"
#include "vmm/vm_boot.h"
#include "vmm/vm_parts.h"
#include "vmm/vm_wiring.h"

namespace stopvisor::vmm {
namespace {

// As many vCPUs as there may be where nobody says: room to grow at a cost of a few KiB.
constexpr uint32_t kRoomForCpus = 32;

Error wrong(const VmConfig& config, std::string reason) {
  return Error{"start VM", config.name, std::move(reason), Status::kUsage};
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
  if (!config.kernel.empty())
    return {};
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

Vm::Parts::Parts(VmConfig its_config, KvmSystem its_system, GuestMemory its_memory, KvmVm its_kvm,
                 std::unique_ptr<SerialOutput> its_output)
    : config(std::move(its_config)), system(std::move(its_system)), memory(std::move(its_memory)),
      kvm(std::move(its_kvm)), output(std::move(its_output)),
      serial(output.get(), [this](bool level) { kvm.set_irq_line(kSerialGsi, level); }),
      power(VcpuThread::request_from_current,
            [this] { // an edge
              kvm.set_irq_line(probe::kPowerGsi, true);
              kvm.set_irq_line(probe::kPowerGsi, false);
            }),
      doorbell(memory), cpu_device(config.max_cpus,
                                   [this] { // an edge
                                     kvm.set_irq_line(probe::kCpuGsi, true);
                                     kvm.set_irq_line(probe::kCpuGsi, false);
                                   }),
      keyboard_reset(VcpuThread::request_from_current), reset_control(VcpuThread::request_from_current),
      life([this] { let_out(); }), machine(config.max_cpus, *this, 1), stops(machine), vcpus(config.max_cpus) {}

Vm::Parts::~Parts() = default;

std::expected<void, Error> Vm::Parts::attach_devices() {
  if (auto done = ports.attach(kSerialPort, Serial16550::kPortCount, serial); !done)
    return done;
  if (auto done = ports.attach(probe::kPowerPort, kPowerPortBytes, power); !done)
    return done;
  if (auto done = ports.attach(kKeyboardCommandPort, 1, keyboard_reset); !done)
    return done;
  if (auto done = ports.attach(kResetControlPort, 1, reset_control); !done)
    return done;
  if (auto done = cpu_device.attach_to(ports); !done)
    return done;
  doorbell.use_worker(doorbell_worker);
  return doorbell.attach_to(ports, mmio);
}

std::expected<void, Error> Vm::Parts::make_vcpus() {
  for (uint32_t cpu = 0; cpu < config.cpus; ++cpu) {
    auto vcpu = make_vcpu(cpu);
    if (!vcpu)
      return std::unexpected(vcpu.error());
    vcpus.next() = std::move(*vcpu);
    vcpus.publish();
    cpu_device.add(cpu, false);
  }
  return {};
}

std::expected<void, Error> Vm::Parts::load(const BootFiles& files, std::span<const std::byte> tree) {
  const auto entry = load_vm(config, memory, files, tree);
  if (!entry)
    return std::unexpected(entry.error());
  return vcpus[0].thread.vcpu().set_pvh_entry(entry->rip, entry->rbx);
}

std::expected<std::unique_ptr<Vm>, Error> Vm::create(VmConfig config) {
  prepare_kick_signal();
  config.cmdline = boot_cmdline(config);
  auto system = KvmSystem::open();
  if (!system)
    return std::unexpected(system.error());
  if (config.max_cpus == 0)
    config.max_cpus = std::max(config.cpus, std::min(kRoomForCpus, system->max_cpus()));
  if (auto checked = check(config, *system); !checked)
    return std::unexpected(checked.error());
  auto files = BootFiles::read(config);
  if (!files)
    return std::unexpected(files.error());
  auto memory = GuestMemory::create(config.memory_bytes, config.backing);
  if (!memory)
    return std::unexpected(memory.error());
  auto kvm = KvmVm::create(*system, config.max_cpus, *memory);
  if (!kvm)
    return std::unexpected(kvm.error());
  auto tree = describe_vm(config, stopper::CpuMask::first_n(config.cpus), *memory, kvm->has_pit(), *files);
  if (!tree)
    return std::unexpected(tree.error());
  auto output = open_output(config);
  if (!output)
    return std::unexpected(output.error());

  auto parts = std::make_unique<Parts>(std::move(config), std::move(*system), std::move(*memory), std::move(*kvm),
                                       std::move(*output));
  parts->device_tree = std::move(*tree);
  if (auto attached = parts->attach_devices(); !attached)
    return std::unexpected(attached.error());
  if (auto made = parts->make_vcpus(); !made)
    return std::unexpected(made.error());
  if (auto loaded = parts->load(*files, parts->device_tree); !loaded)
    return std::unexpected(loaded.error());
  return std::unique_ptr<Vm>(new Vm(std::move(parts)));
}

} // namespace stopvisor::vmm
