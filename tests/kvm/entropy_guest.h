// SPDX-License-Identifier: Apache-2.0
// A raw guest that drives the entropy device: the device fills the guest's memory by itself, again and again.
#pragma once

#include <cstdint>
#include <span>
#include <utility>

#include "guest/probe_abi.h"
#include "tests/kvm/raw_guest.h"
#include "vmm/guest_memory.h"
#include "vmm/virtio/device_table.h"

namespace stopvisor::vmm::testing {

inline constexpr uint64_t kDescriptors = 0x20'0000;
inline constexpr uint64_t kAvailable = 0x20'1000;
inline constexpr uint64_t kUsed = 0x20'2000;
inline constexpr uint64_t kReset = 0x20'3000; // the host sets it
inline constexpr uint64_t kBuffers = 0x21'0000;
inline constexpr uint16_t kSize = 8;
inline constexpr uint32_t kBufferBytes = 32 << 10;
inline constexpr uint64_t kDevice = virtio::slot_gpa(0).value; // there is nothing but entropy

// movl $value, address
inline Code store(uint64_t address, uint32_t value) {
  return Code().bytes({0xc7, 0x05}).u32(static_cast<uint32_t>(address)).u32(value);
}

// Sets up queue 0 as virtio 1.2, 3.1.1 has it, but for reading anything back.
inline Code set_up() {
  Code code;
  for (const auto& [reg, value] : {std::pair{0x70U, 1U},
                                   {0x70U, 3U},
                                   {0x24U, 1U},
                                   {0x20U, 1U},
                                   {0x70U, 11U},
                                   {0x30U, 0U},
                                   {0x38U, uint32_t{kSize}},
                                   {0x80U, uint32_t{kDescriptors}},
                                   {0x84U, 0U},
                                   {0x90U, uint32_t{kAvailable}},
                                   {0x94U, 0U},
                                   {0xa0U, uint32_t{kUsed}},
                                   {0xa4U, 0U},
                                   {0x44U, 1U},
                                   {0x70U, 15U}})
    code.append(store(kDevice + reg, value));
  return code;
}

// Asks, waits for the answer, asks again, ... until it is told to reset the machine. A buffer is asked for again
// and again: the available ring and the first descriptors may as well be zeros, as they are after a reset.
inline Code entropy_guest() {
  Code ask;
  ask.bytes({0x66, 0xff, 0x05}).u32(kAvailable + 2); // incw the available index
  ask.append(store(kDevice + 0x50, 0));              // notify
  Code wait;
  wait.bytes({0x66, 0xa1}).u32(kUsed + 2);                                      // movw the used index, %ax
  wait.bytes({0x66, 0x3b, 0x05}).u32(kAvailable + 2);                           // cmpw the available index, %ax
  wait.bytes({0x75, static_cast<uint8_t>(-static_cast<int>(wait.size() + 2))}); // jne wait
  Code turn = ask;
  turn.append(wait);
  turn.bytes({0x83, 0x3d}).u32(kReset).bytes({0x00});                           // cmpl $0, kReset
  turn.bytes({0x74, static_cast<uint8_t>(-static_cast<int>(turn.size() + 2))}); // je ask
  return set_up().append(turn).out32(probe::kPowerPort, probe::kPowerReset).spin();
}

// Each place of the ring names a buffer of its own, from `buffers` on.
inline void put_entropy_ring(const GuestMemory& memory, uint64_t buffers = kBuffers) {
  const auto put = [&](uint64_t gpa, auto value) {
    (void)memory.write(Gpa{gpa}, std::as_bytes(std::span(&value, 1)));
  };
  for (uint16_t place = 0; place < kSize; ++place) {
    const uint64_t at = kDescriptors + uint64_t{16} * place;
    put(at, buffers + uint64_t{kBufferBytes} * place);
    put(at + 8, kBufferBytes);
    put(at + 12, uint16_t{2}); // to be written
    put(kAvailable + 4 + uint64_t{2} * place, place);
  }
}

} // namespace stopvisor::vmm::testing
