// SPDX-License-Identifier: Apache-2.0
// Threads that are lifted above others, and come down again whatever rights the process has.
#include "vmm/urgent_thread.h"

#include <linux/capability.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <thread>

#include <gtest/gtest.h>

namespace stopvisor::vmm {
namespace {

int policy() {
  return ::sched_getscheduler(0) & ~SCHED_RESET_ON_FORK;
}

// Of the calling thread alone: capset(2) without the C library's help.
bool give_up_sys_nice() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  std::array<__user_cap_data_struct, 2> rights{};
  if (::syscall(SYS_capget, &header, rights.data()) != 0)
    return false;
  rights[0].effective &= ~(1U << CAP_SYS_NICE);
  rights[0].permitted &= ~(1U << CAP_SYS_NICE);
  return ::syscall(SYS_capset, &header, rights.data()) == 0;
}

// A user may have the right to lift threads (RLIMIT_RTPRIO) without CAP_SYS_NICE, and then may not take
// SCHED_RESET_ON_FORK back. SCHED_BATCH with that flag, which everybody may have, stands for SCHED_FIFO with it.
TEST(UrgentThread, ComesDownWithoutTheRightToTakeItsFlagBack) {
  std::thread([] {
    ASSERT_TRUE(give_up_sys_nice());
    const sched_param none{};
    ASSERT_EQ(::sched_setscheduler(0, SCHED_BATCH | SCHED_RESET_ON_FORK, &none), 0);
    make_this_thread_ordinary();
    EXPECT_EQ(policy(), SCHED_OTHER);
  }).join();
}

TEST(UrgentThread, IsOrdinaryForAWhileAndThenAsItWas) {
  std::thread([] {
    {
      const OrdinaryForAWhile ordinary;
    }
    EXPECT_EQ(policy(), SCHED_OTHER);
    make_this_thread_urgent();
    if (policy() != SCHED_FIFO)
      GTEST_SKIP() << "this process may not have real-time threads";
    {
      const OrdinaryForAWhile ordinary;
      EXPECT_EQ(policy(), SCHED_OTHER);
    }
    EXPECT_EQ(policy(), SCHED_FIFO);
  }).join();
}

} // namespace
} // namespace stopvisor::vmm
