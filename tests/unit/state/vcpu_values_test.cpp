// SPDX-License-Identifier: Apache-2.0
// Every field of a vCPU's state comes back as it was, and none of the padding goes in.
#include "vmm/state/vcpu_values.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "vmm/state/vm_values.h"

namespace stopvisor::vmm {
namespace {

// Random bytes everywhere, padding included.
template <class Struct>
void fill(Struct& to, std::mt19937& random) {
  auto bytes = std::as_writable_bytes(std::span(&to, 1));
  for (std::byte& byte : bytes)
    byte = static_cast<std::byte>(random());
}

VcpuValues some_vcpu(uint32_t seed) {
  std::mt19937 random(seed);
  VcpuValues values;
  values.cpuid.resize(5);
  values.msrs.resize(7);
  for (kvm_cpuid_entry2& leaf : values.cpuid)
    fill(leaf, random);
  for (kvm_msr_entry& msr : values.msrs)
    fill(msr, random);
  fill(values.mp_state, random);
  fill(values.events, random);
  fill(values.regs, random);
  fill(values.sregs, random);
  fill(values.xcrs, random);
  fill(values.debugregs, random);
  fill(values.lapic, random);
  values.xcrs.nr_xcrs = 2;
  values.xsave.resize(4096);
  for (std::byte& byte : values.xsave)
    byte = static_cast<std::byte>(random());
  values.has_pdptrs = true;
  values.pdptrs = {1, 2, 3, 4};
  values.tsc = 77;
  values.tsc_khz = 2'600'000;
  return values;
}

std::vector<StateSection> encoded(const VcpuValues& values, uint32_t cpu) {
  std::vector<StateSection> sections;
  encode_vcpu(values, cpu, sections);
  return sections;
}

// Intel SDM volume 3, 11.8.3.1, figure 11-19.
TEST(ProcessorPriority, IsTheHigherOfTaskAndInterruptInService) {
  const auto priority = [](uint8_t task, std::initializer_list<uint32_t> in_service) {
    kvm_lapic_state lapic{};
    std::memset(lapic.regs + 0xa0, 0x77, 4);
    lapic.regs[0x80] = static_cast<char>(task);
    for (const uint32_t vector : in_service)
      lapic.regs[0x100 + vector / 32 * 16 + vector % 32 / 8] |= static_cast<char>(1U << (vector % 8));
    derive_processor_priority(lapic);
    uint32_t word = 0;
    std::memcpy(&word, lapic.regs + 0xa0, sizeof word);
    return word;
  };
  EXPECT_EQ(priority(0, {}), 0U);
  EXPECT_EQ(priority(0x23, {}), 0x23U);
  EXPECT_EQ(priority(0, {0x31}), 0x30U) << "of an interrupt the class alone";
  EXPECT_EQ(priority(0, {0x31, 0xec, 0x80}), 0xe0U) << "the highest of them";
  EXPECT_EQ(priority(0xe4, {0xec}), 0xe4U) << "of equals the task";
  EXPECT_EQ(priority(0xd4, {0xec}), 0xe0U);
  EXPECT_EQ(priority(0, {255}), 0xf0U);
}

TEST(VcpuValues, ComeBackAsTheyWere) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    const auto sections = encoded(some_vcpu(seed), 3);
    auto from = StateSections::index(sections);
    ASSERT_TRUE(from.has_value());
    const auto values = decode_vcpu(*from, 3);
    ASSERT_TRUE(values.has_value()) << values.error().message();
    EXPECT_TRUE(from->finish().has_value());
    EXPECT_EQ(encoded(*values, 3), sections);
    const VcpuValues original = some_vcpu(seed);
    EXPECT_EQ(std::memcmp(&values->regs, &original.regs, sizeof original.regs), 0); // which has no padding
    EXPECT_EQ(values->sregs.ldt.unusable, original.sregs.ldt.unusable);
    EXPECT_EQ(values->sregs.interrupt_bitmap[3], original.sregs.interrupt_bitmap[3]);
    EXPECT_EQ(values->events.exception_payload, original.events.exception_payload);
    EXPECT_EQ(values->events.nmi.masked, original.events.nmi.masked);
    EXPECT_EQ(values->debugregs.dr7, original.debugregs.dr7);
    EXPECT_EQ(values->xcrs.xcrs[1].value, original.xcrs.xcrs[1].value);
    EXPECT_EQ(values->msrs[6].data, original.msrs[6].data);
    EXPECT_EQ(values->cpuid[4].edx, original.cpuid[4].edx);
    EXPECT_EQ(values->xsave, original.xsave);
  }
}

TEST(VcpuValues, OfDifferentPaddingAreTheSameBytes) {
  VcpuValues one = some_vcpu(1);
  const VcpuValues other = one;
  one.sregs.cs.padding ^= 1;
  one.sregs.gdt.padding[2] ^= 1;
  one.debugregs.reserved[8] ^= 1;
  one.events.reserved[3] ^= 1;
  one.events.nmi.pad ^= 1;
  one.events.flags ^= 1; // of the call, not of the state
  one.xcrs.padding[5] ^= 1;
  one.msrs[0].reserved ^= 1;
  one.cpuid[0].padding[1] ^= 1;
  EXPECT_EQ(encoded(one, 0), encoded(other, 0));
}

TEST(VcpuValues, WithMoreEntriesThanThereAreBytesAreRefused) {
  for (const StateKind kind : {StateKind::kVcpuCpuid, StateKind::kVcpuMsrs, StateKind::kVcpuXcrs}) {
    auto sections = encoded(some_vcpu(1), 0);
    for (StateSection& section : sections)
      if (section.kind == static_cast<uint32_t>(kind))
        section.payload[3] = std::byte{0xff}; // the number's highest byte
    auto from = StateSections::index(sections);
    const auto values = decode_vcpu(*from, 0);
    ASSERT_FALSE(values.has_value());
    EXPECT_EQ(values.error().reason, "it has more entries than there can be");
  }
}

TEST(VmValues, ComeBackAsTheyWere) {
  std::mt19937 random(9);
  ControllerValues values;
  for (kvm_irqchip& chip : values.irqchips)
    fill(chip, random);
  fill(values.pit.emplace(), random);
  std::vector<StateSection> sections;
  encode_controllers(values, sections);
  encode_clock({12345, 67890}, sections);
  auto from = StateSections::index(sections);
  ASSERT_TRUE(from.has_value());
  const auto again = decode_controllers(*from);
  ASSERT_TRUE(again.has_value());
  EXPECT_EQ(again->irqchips[2].chip.ioapic.redirtbl[23].bits, values.irqchips[2].chip.ioapic.redirtbl[23].bits);
  EXPECT_EQ(again->irqchips[1].chip.pic.elcr_mask, values.irqchips[1].chip.pic.elcr_mask);
  EXPECT_EQ(again->pit->channels[2].gate, values.pit->channels[2].gate);
  EXPECT_EQ(again->pit->channels[0].count_load_time, 0); // the host's
  const auto clock = decode_clock(*from);
  ASSERT_TRUE(clock.has_value());
  EXPECT_EQ(clock->kvmclock_ns, 12345U);
  EXPECT_EQ(clock->realtime_ns, 67890U);
  EXPECT_TRUE(from->finish().has_value());
}

} // namespace
} // namespace stopvisor::vmm
