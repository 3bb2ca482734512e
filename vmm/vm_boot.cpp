// SPDX-License-Identifier: Apache-2.0
#include "vmm/vm_boot.h"

#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "guest/probe_abi.h"
#include "guest/probe_image.h"
#include "vmm/acpi/tables.h"
#include "vmm/boot/bzimage.h"
#include "vmm/boot/kernel_kind.h"
#include "vmm/boot/linux64.h"
#include "vmm/boot/memory_layout.h"
#include "vmm/boot/pvh.h"
#include "vmm/boot/reset_vector.h"
#include "vmm/devices/i8042.h"
#include "vmm/devices/reset_port.h"
#include "vmm/devices/serial16550.h"
#include "vmm/virtio/device_table.h"
#include "vmm/vm_wiring.h"

namespace stopvisor::vmm {
namespace {

bool has_word_starting(std::string_view text, std::string_view start) {
  for (size_t at = text.find(start); at != std::string_view::npos; at = text.find(start, at + 1))
    if (at == 0 || text[at - 1] == ' ')
      return true;
  return false;
}

std::string kernel_name(const VmConfig& config) {
  return config.kernel.empty() ? "the built-in probe guest" : config.kernel;
}

std::expected<Gpa, Error> place_initrd(const VmConfig& config, const GuestMemory& memory, const BootFiles& files) {
  const auto kind = kernel_kind(files.kernel(), kernel_name(config));
  if (!kind)
    return std::unexpected(kind.error());
  if (*kind == KernelKind::kElf)
    return initrd_gpa(memory, files.initrd().size());
  const auto kernel = read_bzimage(files.kernel(), kernel_name(config));
  if (!kernel)
    return std::unexpected(kernel.error());
  return initrd_gpa(memory, files.initrd().size(), kernel->highest_initrd_byte);
}

template <typename Entry>
std::expected<BootEntry, Error> any_entry(const std::expected<Entry, Error>& entry) {
  if (!entry)
    return std::unexpected(entry.error());
  return BootEntry(*entry);
}

std::expected<acpi::Platform, Error> platform_of(const VmConfig& config, const stopper::CpuMask& wanted) {
  acpi::Platform platform;
  wanted.for_each([&](stopper::CpuId cpu) { platform.apic_ids.push_back(cpu); });
  platform.keyboard = true;
  for (size_t slot = 0, slots = virtio::places(config).size(); slot < slots; ++slot)
    platform.virtio.push_back({virtio::slot_gpa(slot), virtio::slot_gsi(slot)});
  // Each start is another generation: what the guest derived from random numbers before must not be used again.
  const auto generation = random_generation("start VM");
  if (!generation)
    return std::unexpected(generation.error());
  platform.generation_id = *generation;
  return platform;
}

} // namespace

std::expected<BootFiles, Error> BootFiles::read(const VmConfig& config) {
  BootFiles files;
  if (!config.kernel.empty()) {
    auto kernel = read_file("load kernel", config.kernel);
    if (!kernel)
      return std::unexpected(kernel.error());
    files.kernel_ = std::move(*kernel);
  }
  if (!config.initrd.empty()) {
    auto initrd = read_file("load initrd", config.initrd);
    if (!initrd)
      return std::unexpected(initrd.error());
    files.initrd_ = std::move(*initrd);
  }
  return files;
}

std::span<const std::byte> BootFiles::kernel() const noexcept {
  return kernel_ ? kernel_->bytes() : probe::image();
}

std::span<const std::byte> BootFiles::initrd() const noexcept {
  return initrd_ ? initrd_->bytes() : std::span<const std::byte>{};
}

std::string boot_cmdline(const VmConfig& config) {
  std::string cmdline = config.cmdline;
  if (config.kernel.empty() && !has_word_starting(cmdline, "cpus="))
    cmdline += (cmdline.empty() ? "cpus=" : " cpus=") + std::to_string(config.cpus);
  return cmdline;
}

MachineDescription machine_of(const VmConfig& config, const stopper::CpuMask& wanted, bool has_pit) {
  MachineDescription machine;
  machine.name = config.name;
  machine.memory.push_back({Gpa{0}, std::min(config.memory_bytes, kHoleStart)}); // as GuestMemory lays it out
  if (config.memory_bytes > kHoleStart)
    machine.memory.push_back({Gpa{kHoleEnd}, config.memory_bytes - kHoleStart});
  machine.memory_backing = name_of(config.backing);
  machine.kernel = config.kernel;
  machine.initrd_path = config.initrd;
  machine.cpus = config.max_cpus;
  machine.enabled_cpus = wanted;
  machine.cpu_device = MachineDescription::CpuDevice{probe::kCpuSignaturePort, probe::kCpuPortBase, probe::kCpuGsi};
  machine.pit = has_pit;
  machine.serial = MachineDescription::Serial{kSerialPort, kSerialGsi};
  machine.doorbell =
      MachineDescription::Doorbell{probe::kDoorbellSignaturePort, probe::kDoorbellPortBase, 4 * probe::kMaxCpus,
                                   Gpa{probe::kDoorbellMmioGpa}, probe::kDoorbellMmioBytes};
  machine.power = MachineDescription::Power{probe::kPowerPort, kPowerPortBytes, probe::kPowerGsi};
  machine.keyboard = MachineDescription::Keyboard{kKeyboardDataPort, kKeyboardCommandPort, kKeyboardGsi};
  machine.resets = {{kKeyboardCommandPort, kKeyboardPulseReset, 0xff},
                    {kResetControlPort, kResetControlCpu, kResetControlCpu}};
  machine.virtio = virtio::describe_devices(config);
  machine.bootargs = config.cmdline;
  return machine;
}

std::expected<std::vector<std::byte>, Error> describe_vm(const VmConfig& config, const stopper::CpuMask& wanted,
                                                         const GuestMemory& memory, bool has_pit,
                                                         const BootFiles& files) {
  MachineDescription machine = machine_of(config, wanted, has_pit);
  machine.bootargs = boot_cmdline(config);
  if (!files.initrd().empty()) {
    const auto place = place_initrd(config, memory, files);
    if (!place)
      return std::unexpected(place.error());
    machine.initrd = MachineDescription::Initrd{*place, files.initrd().size()};
  }
  return describe_machine(machine);
}

std::expected<std::array<std::byte, 16>, Error> random_generation(const char* operation) {
  std::array<std::byte, 16> bytes{};
  if (::getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size()))
    return std::unexpected(system_error(operation, "VM generation ID", errno));
  return bytes;
}

std::expected<BootEntry, Error> load_vm(const VmConfig& config, GuestMemory& memory, const BootFiles& files,
                                        const stopper::CpuMask& wanted, std::span<const std::byte> device_tree) {
  const std::string name = kernel_name(config);
  const auto kind = kernel_kind(files.kernel(), name);
  if (!kind)
    return std::unexpected(kind.error());
  const std::string cmdline = boot_cmdline(config);
  const BootImage image{files.kernel(), files.initrd(), cmdline, device_tree, Gpa{acpi::kTablesGpa}};
  const auto entry = *kind == KernelKind::kElf ? any_entry(load_pvh(memory, image, name))
                                               : any_entry(load_linux64(memory, image, name));
  if (!entry)
    return entry;
  const auto platform = platform_of(config, wanted);
  if (!platform)
    return std::unexpected(platform.error());
  if (const auto written = acpi::write_tables(memory, *platform); !written)
    return std::unexpected(written.error());
  if (auto written = write_reset_vector(memory); !written)
    return std::unexpected(written.error());
  return entry;
}

} // namespace stopvisor::vmm
