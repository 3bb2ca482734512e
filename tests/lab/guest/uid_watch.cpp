// SPDX-License-Identifier: Apache-2.0
// Runs in a guest: asks getuid(2) over and over on each CPU, and prints a line "UID N" whenever the first thread's
// answer is another than it was.
//
// Linked statically: the guest has no library. The other threads are there to be in the system call while it is
// patched; only one speaks, as another's answer from just before a change might be heard after it.
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <thread>
#include <vector>

namespace {

void pin(unsigned cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  ::sched_setaffinity(0, sizeof set, &set);
}

} // namespace

int main() {
  std::vector<std::thread> others;
  for (unsigned cpu = 1; cpu < std::thread::hardware_concurrency(); ++cpu)
    others.emplace_back([cpu] {
      pin(cpu);
      for (;;)
        ::syscall(SYS_getuid);
    });
  pin(0);
  for (long told = -1;;) {
    const long now = ::syscall(SYS_getuid);
    if (now == told)
      continue;
    told = now;
    std::printf("UID %ld\n", now);
    std::fflush(stdout);
  }
}
