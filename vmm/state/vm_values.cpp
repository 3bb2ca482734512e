// SPDX-License-Identifier: Apache-2.0
#include "vmm/state/vm_values.h"

#include <utility>

namespace stopvisor::vmm {
namespace {

constexpr uint32_t kVersion = 1; // of all of them

void each_pic_field(const auto& io, auto& pic) {
  io(pic.last_irr, pic.irr, pic.imr, pic.isr, pic.priority_add, pic.irq_base, pic.read_reg_select, pic.poll);
  io(pic.special_mask, pic.init_state, pic.auto_eoi, pic.rotate_on_auto_eoi, pic.special_fully_nested_mode,
     pic.init4, pic.elcr, pic.elcr_mask);
}

void each_ioapic_field(const auto& io, auto& ioapic) {
  io(ioapic.base_address, ioapic.ioregsel, ioapic.id, ioapic.irr);
  for (auto& entry : ioapic.redirtbl)
    io(entry.bits);
}

void each_chip_field(const auto& io, auto& chip, uint32_t which) {
  if (which == KVM_IRQCHIP_IOAPIC)
    each_ioapic_field(io, chip.chip.ioapic);
  else
    each_pic_field(io, chip.chip.pic);
}

// Without the time each counter was loaded at, which is the host's: KVM takes the time at which it is given the
// state, and ignores what stands there.
void each_pit_field(const auto& io, auto& pit) {
  for (auto& channel : pit.channels)
    io(channel.count, channel.latched_count, channel.count_latched, channel.status_latched, channel.status,
       channel.read_state, channel.write_state, channel.write_latch, channel.rw_mode, channel.mode, channel.bcd,
       channel.gate);
  io(pit.flags);
}

void add(StateKind kind, uint32_t instance, std::vector<StateSection>& to, const auto& write) {
  StateWriter out;
  write(PutFields(out));
  to.push_back({static_cast<uint32_t>(kind), kVersion, instance, out.take()});
}

} // namespace

void encode_controllers(const ControllerValues& values, std::vector<StateSection>& to) {
  for (uint32_t which = 0; which < values.irqchips.size(); ++which)
    add(StateKind::kIrqChip, which, to,
        [&](const PutFields& io) { each_chip_field(io, values.irqchips[which], which); });
  if (values.pit)
    add(StateKind::kPit, 0, to, [&](const PutFields& io) { each_pit_field(io, *values.pit); });
}

std::expected<ControllerValues, Error> decode_controllers(StateSections& from) {
  ControllerValues values;
  for (uint32_t which = 0; which < values.irqchips.size(); ++which) {
    values.irqchips[which].chip_id = which;
    if (auto done =
            from.take(StateKind::kIrqChip, kVersion, which,
                      [&](StateReader& in) { each_chip_field(GetFields(in), values.irqchips[which], which); });
        !done)
      return std::unexpected(done.error());
  }
  if (!from.has(StateKind::kPit, 0))
    return values;
  kvm_pit_state2& pit = values.pit.emplace();
  if (auto done =
          from.take(StateKind::kPit, kVersion, 0, [&](StateReader& in) { each_pit_field(GetFields(in), pit); });
      !done)
    return std::unexpected(done.error());
  return values;
}

void encode_clock(const ClockValues& values, std::vector<StateSection>& to) {
  add(StateKind::kClock, 0, to, [&](const PutFields& io) { io(values.kvmclock_ns, values.realtime_ns); });
}

std::expected<ClockValues, Error> decode_clock(StateSections& from) {
  ClockValues values;
  if (auto done = from.take(StateKind::kClock, kVersion, 0,
                            [&](StateReader& in) { get_fields(in, values.kvmclock_ns, values.realtime_ns); });
      !done)
    return std::unexpected(done.error());
  return values;
}

} // namespace stopvisor::vmm
