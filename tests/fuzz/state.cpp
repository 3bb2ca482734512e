// SPDX-License-Identifier: Apache-2.0
// The sections of a machine's state, each with any payload: what is taken would be saved the same.
#include <functional>
#include <memory>

#include "tests/fuzz/fuzzer.h"
#include "tests/unit/virtio/driver.h"
#include "vmm/devices/acpi_power.h"
#include "vmm/devices/cpu_device.h"
#include "vmm/devices/i8042.h"
#include "vmm/devices/power.h"
#include "vmm/devices/pvpanic.h"
#include "vmm/devices/reset_port.h"
#include "vmm/devices/serial16550.h"
#include "vmm/state/vcpu_values.h"
#include "vmm/state/vm_values.h"
#include "vmm/virtio/entropy.h"

namespace stopvisor::fuzz {
namespace {

using vmm::StatefulDevice;
using Make = std::function<std::unique_ptr<StatefulDevice>()>;

// Of a vCPU and of the machine; any of them may get another payload.
std::vector<vmm::StateSection> good_sections() {
  vmm::VcpuValues values;
  values.cpuid.resize(3);
  values.msrs.resize(3);
  values.xcrs.nr_xcrs = 1;
  values.xsave.resize(4096);
  std::vector<vmm::StateSection> sections;
  vmm::encode_vcpu(values, 0, sections);
  vmm::encode_controllers({}, sections);
  vmm::encode_clock({}, sections);
  return sections;
}

const std::vector<Make>& devices() {
  static const auto nothing = [](vmm::GuestRequest) {};
  static const std::vector<Make> makes{
      [] { return std::make_unique<vmm::Serial16550>(nullptr, nullptr); },
      [] { return std::make_unique<vmm::I8042>(nothing, nullptr); },
      [] { return std::make_unique<vmm::PowerDevice>(nothing, [] {}); },
      [] { return std::make_unique<vmm::AcpiPower>(nothing, [] {}); },
      [] { return std::make_unique<vmm::PvPanic>(nullptr); },
      [] { return std::make_unique<vmm::ResetControlPort>(nothing); },
      [] { return std::make_unique<vmm::CpuDevice>(5, [] {}); },
  };
  return makes;
}

Bytes saved(const StatefulDevice& device) {
  vmm::StateWriter out;
  device.save_state(out);
  return out.take();
}

void try_section(size_t number, ByteSpan payload) {
  static const std::vector<vmm::StateSection> good = good_sections();
  std::vector<vmm::StateSection> sections = good;
  sections[number].payload.assign(payload.begin(), payload.end());
  auto from = vmm::StateSections::index(sections);
  must(from.has_value(), "sections that are all known");
  const auto vcpu = vmm::decode_vcpu(*from, 0);
  const auto controllers = vmm::decode_controllers(*from);
  const auto clock = vmm::decode_clock(*from);
  if (!vcpu || !controllers || !clock)
    return;
  std::vector<vmm::StateSection> again;
  vmm::encode_vcpu(*vcpu, 0, again);
  vmm::encode_controllers(*controllers, again);
  vmm::encode_clock(*clock, again);
  must(again == sections, "a section that would be saved otherwise");
}

void try_device(const Make& make, ByteSpan payload) {
  const auto device = make();
  vmm::StateReader in(payload);
  device->restore_state(in);
  if (in.finish() == nullptr)
    must(std::ranges::equal(saved(*device), payload), "a device that would be saved otherwise");
}

// Its rings are in the guest's memory, which may hold anything as well.
void try_virtio(ByteSpan payload) {
  static vmm::virtio::Entropy started;
  static vmm::testing::Driver driver(started);
  vmm::virtio::Entropy device;
  vmm::virtio::Mmio mmio(device, {driver.memory, driver.written, [] {}, [] {}});
  vmm::StateReader in(payload);
  mmio.restore_state(in);
  (void)in.finish();
  for (int job = 0; job < 4 && mmio.do_job(); ++job) {
  }
  (void)saved(mmio);
}

} // namespace

std::vector<Bytes> seeds() {
  std::vector<Bytes> all;
  unsigned number = 0;
  for (const vmm::StateSection& section : good_sections())
    all.push_back(chosen(number++, section.payload));
  for (const Make& make : devices())
    all.push_back(chosen(number++, saved(*make())));
  vmm::virtio::Entropy device;
  vmm::testing::Driver driver(device);
  driver.start();
  (void)driver.request({}, {16});
  all.push_back(chosen(number, saved(driver.mmio)));
  return all;
}

void try_one(ByteSpan input) {
  static const size_t sections = good_sections().size();
  const Choice choice = choice_of(input);
  size_t number = choice.first % (sections + devices().size() + 1);
  if (number < sections)
    return try_section(number, choice.rest);
  number -= sections;
  if (number < devices().size())
    return try_device(devices()[number], choice.rest);
  try_virtio(choice.rest);
}

} // namespace stopvisor::fuzz
