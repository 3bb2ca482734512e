// SPDX-License-Identifier: Apache-2.0
// A machine whose making goes on by a thread while others put memory into it.
#include <sys/resource.h>

#include <filesystem>
#include <iterator>

#include "tests/kvm/state_fixture.h"
#include "tests/sanitized.h"

namespace stopvisor::vmm::testing {
namespace {

class Begin : public StateTest {
protected:
  static VmConfig bare(const Vm& from) {
    VmConfig config = from.config();
    config.bare = true;
    return config;
  }
  static auto open_files() {
    return std::distance(std::filesystem::directory_iterator("/proc/self/fd"),
                         std::filesystem::directory_iterator());
  }
};

TEST_F(Begin, MemoryComesWhileTheMachineIsMade) {
  auto vm = started(probe(2, ""));
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(await(*vm, [&] { return cpus_running(*vm) == 2; }));
  ASSERT_TRUE(vm->stops().acquire_hold().has_value());
  const Sections sections = saved_twice(*vm);
  auto next = Vm::begin(bare(*vm));
  ASSERT_TRUE(next.has_value()) << next.error().message();
  EXPECT_EQ((*next)->cpu_count(), 0U);
  copy_memory(*vm, **next);
  const auto too_early = (*next)->restore_state(sections);
  ASSERT_FALSE(too_early.has_value());
  EXPECT_EQ(too_early.error().status, Status::kUsage);
  for (int again = 0; again < 2; ++again)
    ASSERT_TRUE((*next)->await_made().has_value());
  EXPECT_EQ((*next)->cpu_count(), 2U);
  ASSERT_TRUE((*next)->restore_state(sections).has_value());
  const uint64_t before = results(**next, 1).slices;
  ASSERT_TRUE((*next)->start().has_value());
  EXPECT_TRUE(await(**next, [&] { return results(**next, 1).slices > before + 2; }));
}

TEST_F(Begin, NothingIsLeftOfOneThatIsGivenUp) {
  VmConfig config = probe(4, "");
  config.bare = true;
  const auto before = open_files();
  for (int round = 0; round < 50; ++round) {
    auto vm = Vm::begin(config);
    ASSERT_TRUE(vm.has_value()) << vm.error().message();
    if (round % 3 == 1)
      (*vm)->request_end({EndKind::kRequested, ""});
    if (round % 3 == 2) {
      EXPECT_TRUE((*vm)->await_made().has_value());
    }
  }
  EXPECT_EQ(open_files(), before);
}

TEST_F(Begin, OnlyABareMachineIsBegun) {
  const auto vm = Vm::begin(probe(1, ""));
  ASSERT_FALSE(vm.has_value());
  EXPECT_EQ(vm.error().status, Status::kUsage);
}

// One descriptor more each time: it is missing in turn for everything that needs one.
TEST_F(Begin, WhatTheHostRefusesIsToldByWhoNeedsIt) {
  if (kAddressSanitizer) // it is built with UBSan, which looks at an object's type through a pipe
    GTEST_SKIP() << "the sanitizer needs descriptors of its own";
  VmConfig config = probe(2, "");
  config.bare = true;
  const auto before = open_files();
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  uint32_t refused_later = 0;
  bool made = false;
  for (rlim_t files = 3; !made && files < 64; ++files) {
    const rlimit few{files, limit.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &few), 0);
    auto vm = Vm::begin(config);
    const auto awaited = vm ? (*vm)->await_made() : std::unexpected(vm.error());
    const auto again = vm ? (*vm)->await_made() : std::unexpected(vm.error());
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
    made = awaited.has_value();
    EXPECT_EQ(again.has_value(), made);
    if (made)
      break;
    EXPECT_NE(awaited.error().reason.find("Too many open files"), std::string::npos) << awaited.error().message();
    if (!vm)
      continue;
    ++refused_later;
    const auto started = (*vm)->start();
    ASSERT_FALSE(started.has_value());
    EXPECT_EQ(started.error().message(), awaited.error().message());
    EXPECT_FALSE((*vm)->restore_state({}).has_value());
    EXPECT_FALSE((*vm)->check_requirements({}).has_value());
  }
  EXPECT_TRUE(made);
  EXPECT_GE(refused_later, 3U) << "the VM and two vCPUs";
  EXPECT_EQ(open_files(), before);
}

} // namespace
} // namespace stopvisor::vmm::testing
