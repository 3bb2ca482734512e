// SPDX-License-Identifier: Apache-2.0
// Makes a processor forget what it has fetched of code that others changed.
//
// Guest code may be changed under a stop by another thread than the one that executes it next: cross-modifying
// code. The processor that executes it must then run a serialising instruction first (Intel SDM volume 3, "Handling
// Self- and Cross-Modifying Code"; AMD APM volume 2, 7.6.1). A VM entry is none of those that the manuals list as
// serialising, so that we do not lean on it.
#pragma once

#include <cpuid.h>

namespace stopvisor::vmm {

// CONTEXT: the thread that will execute the code, after it has seen that the change is over. Where the host moves
// it to another processor afterwards, that one has run the host's scheduler since, not guest code. CPUID: a virtual
// host's hypervisor is called for it, which takes microseconds, so that nobody does this without need. IRET, which
// would not leave the host, crashes programs under QEMU's software CPU before 9.1 (it pops the frame with the
// kernel's rights, which SMAP forbids).
inline void serialise_this_processor() noexcept {
  unsigned a = 0, b = 0, c = 0, d = 0;
  __cpuid(0, a, b, c, d);
  asm volatile("" : : "r"(a), "r"(b), "r"(c), "r"(d) : "memory"); // it is done whoever wants the result
}

} // namespace stopvisor::vmm
