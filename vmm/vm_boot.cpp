// SPDX-License-Identifier: Apache-2.0
#include "vmm/vm_boot.h"

#include <utility>

#include "guest/probe_abi.h"
#include "guest/probe_image.h"
#include "vmm/devices/reset_port.h"
#include "vmm/devices/serial16550.h"
#include "vmm/machine_description.h"
#include "vmm/vm_wiring.h"

namespace stopvisor::vmm {
namespace {

bool has_word_starting(std::string_view text, std::string_view start) {
  for (size_t at = text.find(start); at != std::string_view::npos; at = text.find(start, at + 1))
    if (at == 0 || text[at - 1] == ' ')
      return true;
  return false;
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

std::expected<std::vector<std::byte>, Error> describe_vm(const VmConfig& config, const stopper::CpuMask& wanted,
                                                         const GuestMemory& memory, bool has_pit,
                                                         const BootFiles& files) {
  MachineDescription machine;
  machine.name = config.name;
  for (const MemorySlot& slot : memory.slots())
    machine.memory.push_back({slot.base, slot.size_bytes});
  machine.cpus = config.max_cpus;
  machine.enabled_cpus = wanted;
  machine.cpu_device = MachineDescription::CpuDevice{probe::kCpuSignaturePort, probe::kCpuPortBase, probe::kCpuGsi};
  machine.pit = has_pit;
  machine.serial = MachineDescription::Serial{kSerialPort, kSerialGsi};
  machine.doorbell =
      MachineDescription::Doorbell{probe::kDoorbellSignaturePort, probe::kDoorbellPortBase, 4 * probe::kMaxCpus,
                                   Gpa{probe::kDoorbellMmioGpa}, probe::kDoorbellMmioBytes};
  machine.power = MachineDescription::Power{probe::kPowerPort, kPowerPortBytes, probe::kPowerGsi};
  machine.resets = {{kKeyboardCommandPort, kKeyboardPulseReset, 0xff},
                    {kResetControlPort, kResetControlCpu, kResetControlCpu}};
  machine.bootargs = boot_cmdline(config);
  if (!files.initrd().empty()) {
    const auto place = initrd_gpa(memory, files.initrd().size());
    if (!place)
      return std::unexpected(place.error());
    machine.initrd = MachineDescription::Initrd{*place, files.initrd().size()};
  }
  return describe_machine(machine);
}

std::expected<BootEntry, Error> load_vm(const VmConfig& config, GuestMemory& memory, const BootFiles& files,
                                        std::span<const std::byte> device_tree) {
  const std::string cmdline = boot_cmdline(config);
  return load_pvh(memory, {files.kernel(), files.initrd(), cmdline, device_tree},
                  config.kernel.empty() ? "the built-in probe guest" : config.kernel);
}

} // namespace stopvisor::vmm
