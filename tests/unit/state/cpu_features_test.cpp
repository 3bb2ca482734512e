// SPDX-License-Identifier: Apache-2.0
// A host that lacks what a guest was told of its processor is refused, by the feature's name.
#include "vmm/state/cpu_features.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

namespace stopvisor::vmm {
namespace {

using Leaves = std::vector<kvm_cpuid_entry2>;

Leaves some_host() {
  constexpr uint32_t kIndexed = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
  return {
      {0x1, 0, 0, 0x806f0, 0, 0x7ffa'3203, 0x0f8b'fbff, {}},
      {0x7, 0, kIndexed, 2, 0xd19f'27eb, 0x40, 0x10, {}},
      {0x7, 1, kIndexed, 0x30, 0, 0, 0, {}},
      {0xd, 0, kIndexed, 0xe7, 0, 0, 0, {}},
      {0xd, 1, kIndexed, 0x7, 0, 0, 0, {}},
      {0x8000'0001, 0, 0, 0, 0, 0x121, 0x2810'0800, {}},
      {0x8000'0007, 0, 0, 0, 0, 0, 0x100, {}},
  };
}

kvm_cpuid_entry2& leaf(Leaves& of, uint32_t function, uint32_t index = 0) {
  for (kvm_cpuid_entry2& entry : of)
    if (entry.function == function && entry.index == index)
      return entry;
  ADD_FAILURE() << "no leaf " << function;
  return of.front();
}

// What a guest of a host that has more is told, where `change` makes that host of some_host().
std::string refusal(const std::function<void(Leaves&)>& change) {
  Leaves told = some_host();
  change(told);
  const auto fits = check_cpu_features(told, some_host());
  if (!fits) {
    EXPECT_EQ(fits.error().status, Status::kRefused);
  }
  return fits ? "" : fits.error().message();
}

std::string lacks(const std::string& feature) {
  return "restore: this host's processor: it lacks " + feature + ", which the guest was told it has";
}

TEST(CpuFeatures, AreNamedWhereTheHostLacksThem) {
  EXPECT_EQ(refusal([](Leaves&) {}), "");
  EXPECT_EQ(refusal([](Leaves& told) { leaf(told, 0x7).edx |= 1U << 24; }), lacks("amx_tile"));
  EXPECT_EQ(refusal([](Leaves& told) { leaf(told, 0x7).ecx |= 1U << 8; }), lacks("gfni"));
  EXPECT_EQ(refusal([](Leaves& told) { leaf(told, 0xd).eax |= 1U << 18; }), lacks("XSAVE of AMX tiles"));
  EXPECT_EQ(refusal([](Leaves& told) { leaf(told, 0x8000'0001).edx |= 1U << 26; }), lacks("pdpe1gb"));
}

TEST(CpuFeatures, WithoutANameAreToldByLeafAndBit) {
  EXPECT_EQ(refusal([](Leaves& told) { leaf(told, 0x7, 1).eax |= 1U << 23; }), lacks("CPUID 0x7.1 EAX bit 23"));
  EXPECT_EQ(refusal([](Leaves& told) { leaf(told, 0xd, 1).eax |= 1U << 4; }), lacks("CPUID 0xd.1 EAX bit 4"));
}

TEST(CpuFeatures, OfALeafThatTheHostDoesNotHaveAreLacking) {
  EXPECT_EQ(refusal([](Leaves& told) { told.push_back({0x8000'0008, 0, 0, 0x3028, 1U << 9, 0, 0, {}}); }),
            lacks("CPUID 0x80000008.0 EBX bit 9"));
}

TEST(CpuFeatures, MayBeMoreThanTheGuestWasToldOf) {
  EXPECT_EQ(refusal([](Leaves& told) { leaf(told, 0x7) = {0x7, 0, 1, 0, 0, 0, 0, {}}; }), "");
  EXPECT_EQ(refusal([](Leaves& told) { told.clear(); }), "");
}

// These follow from what the guest has switched on, and from this VMM.
TEST(CpuFeatures, ThatDoNotComeFromTheHostAreNotAskedOfIt) {
  EXPECT_EQ(refusal([](Leaves& told) {
              leaf(told, 0x1).ecx |= 1U << 31 | 1U << 27;
              leaf(told, 0x1).edx |= 1U << 28;
              leaf(told, 0x7).ecx |= 1U << 4;
              leaf(told, 0x1).eax = 0xa20f10;
            }),
            "");
}

} // namespace
} // namespace stopvisor::vmm
