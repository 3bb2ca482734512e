// SPDX-License-Identifier: Apache-2.0
// What tests of saved machines share: a machine saved whole, another one made of it, and how two states differ.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/kvm/kvm_fixture.h"
#include "vmm/state/sections.h"

namespace stopvisor::vmm::testing {

using Sections = std::vector<StateSection>;

class StateTest : public KvmTest {
protected:
  // Saves it under one stop, twice. Empty, with a failed expectation, where that fails or they differ.
  static Sections saved_twice(Vm& vm) {
    std::expected<Sections, Error> once;
    std::expected<Sections, Error> twice;
    const auto stop = vm.stops().run([&](stopper::StopContext&) {
      once = vm.save_state();
      twice = vm.save_state();
      return 0;
    });
    EXPECT_TRUE(stop.has_value());
    EXPECT_TRUE(once.has_value()) << once.error().message();
    if (!stop || !once || !twice)
      return {};
    EXPECT_EQ(differences(*once, *twice), "") << "the same held VM, saved twice";
    return std::move(*once);
  }

  // A machine of the same configuration with the same memory and this state, which has not started. `from` is held.
  static std::unique_ptr<Vm> restored(const Vm& from, const Sections& sections) {
    auto vm = bare_twin(from);
    if (vm == nullptr)
      return nullptr;
    copy_memory(from, *vm);
    const auto done = vm->restore_state(sections, {.new_generation = false});
    EXPECT_TRUE(done.has_value()) << done.error().message();
    return done ? std::move(vm) : nullptr;
  }
  static std::unique_ptr<Vm> bare_twin(const Vm& from) {
    VmConfig config = from.config();
    config.cpus = from.cpu_count();
    config.bare = true;
    return make(config);
  }
  // Pages of zeros are not touched.
  static void copy_memory(const Vm& from, const Vm& to) {
    static constexpr std::byte kZeros[kPageBytes]{};
    const auto targets = to.memory().slots();
    size_t slot = 0;
    for (const MemorySlot& source : from.memory().slots()) {
      for (uint64_t at = 0; at < source.size_bytes; at += kPageBytes)
        if (std::memcmp(source.host + at, kZeros, kPageBytes) != 0)
          std::memcpy(targets[slot].host + at, source.host + at, kPageBytes);
      ++slot;
    }
  }

  // Names the sections that differ; "" where none does.
  static std::string differences(const Sections& a, const Sections& b) {
    std::map<std::pair<uint32_t, uint32_t>, const StateSection*> theirs;
    for (const StateSection& section : b)
      theirs[{section.kind, section.instance}] = &section;
    std::string text;
    for (const StateSection& section : a) {
      const auto found = theirs.find({section.kind, section.instance});
      if (found == theirs.end() || section != *found->second)
        text += name_of_section(section.kind, section.instance) +
                (found == theirs.end()
                     ? " missing; "
                     : " from byte " + std::to_string(first_difference(section, *found->second)) + "; ");
    }
    return a.size() == b.size() ? text : text + "another number of sections";
  }
  static size_t first_difference(const StateSection& a, const StateSection& b) {
    const auto at = std::ranges::mismatch(a.payload, b.payload).in1;
    return static_cast<size_t>(at - a.payload.begin());
  }

  // The state without what goes on by itself: the clocks, and what is left of a timer.
  static Sections without_clocks(Sections sections) {
    for (StateSection& section : sections)
      switch (static_cast<StateKind>(section.kind)) {
      case StateKind::kVcpuTsc:
      case StateKind::kClock:
        section.payload.clear();
        break;
      case StateKind::kVcpuLapic:
        std::fill_n(section.payload.begin() + 0x390, 4, std::byte{0}); // current count
        break;
      default:
        break;
      }
    return sections;
  }
  static StateSection* find(Sections& sections, StateKind kind, uint32_t instance) {
    for (StateSection& section : sections)
      if (section.kind == static_cast<uint32_t>(kind) && section.instance == instance)
        return &section;
    return nullptr;
  }

  // Puts something into every vector register that this vCPU has, which the probe leaves alone: it stays there
  // through all that follows. RETURNS: in how many components of the XSAVE area.
  static size_t fill_vector_registers(Sections& sections, uint32_t cpu) {
    StateSection* const xsave = find(sections, StateKind::kVcpuXsave, cpu);
    const StateSection* const leaves = find(sections, StateKind::kVcpuCpuid, cpu);
    if (xsave == nullptr || leaves == nullptr)
      return 0;
    const auto components = vector_components(*leaves);
    for (const Component& component : components) {
      if (component.offset + component.bytes > xsave->payload.size())
        return 0;
      for (uint32_t byte = 0; byte < component.bytes; ++byte)
        xsave->payload[component.offset + byte] = static_cast<std::byte>(byte * 7 + component.bit * 31 + cpu + 1);
      xsave->payload[512] |= static_cast<std::byte>(1U << component.bit); // XSTATE_BV
    }
    return components.size();
  }

private:
  // Where a component of the XSAVE area lies in its standard form: Intel SDM volume 1, 13.4.3; CPUID 0xd.
  struct Component {
    uint32_t bit, offset, bytes;
  };
  static std::vector<Component> vector_components(const StateSection& leaves) {
    std::vector<Component> list{{1, 160, 256}}; // XMM0 to XMM15
    StateReader in(leaves.payload);
    for (auto left = in.get<uint32_t>(); left != 0; --left) {
      std::array<uint32_t, 7> leaf{}; // function, index, flags, EAX, EBX, ECX, EDX
      get_fields(in, leaf);
      const bool vectors = leaf[1] == 2 || (leaf[1] >= 5 && leaf[1] <= 7); // AVX; AVX-512's three
      if (leaf[0] == 0xd && vectors && leaf[3] != 0)
        list.push_back({leaf[1], leaf[4], leaf[3]});
    }
    return list;
  }
};

} // namespace stopvisor::vmm::testing
