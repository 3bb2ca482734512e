// SPDX-License-Identifier: Apache-2.0
#include "tests/sched/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <utility>

#ifdef STOPVISOR_ASAN
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef STOPVISOR_SCHED_TSAN
#include <sanitizer/tsan_interface.h>
#endif

// Saves what the System V ABI (section 3.2.1) lets a callee keep, and changes the stack.
extern "C" void stopvisor_switch_stack(void** save, void* load);
asm(R"(
.text
.globl stopvisor_switch_stack
.type stopvisor_switch_stack, @function
stopvisor_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size stopvisor_switch_stack, . - stopvisor_switch_stack
)");

namespace stopvisor::sched {

#ifdef STOPVISOR_ASAN
namespace {
// The thread's own stack, for which ASan asks when we go back to it.
struct OwnStack {
  OwnStack() noexcept {
    pthread_attr_t attributes;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
      pthread_attr_getstack(&attributes, &bottom, &size);
      pthread_attr_destroy(&attributes);
    }
  }
  void* bottom = nullptr;
  size_t size = 0;
};
} // namespace
#endif

Fiber::~Fiber() {
#ifdef STOPVISOR_SCHED_TSAN
  if (stack_ != nullptr && tsan_fiber_ != nullptr)
    __tsan_destroy_fiber(tsan_fiber_);
#endif
  if (stack_ != nullptr)
    munmap(stack_, kStackBytes);
}

void Fiber::prepare(void (*entry)()) {
#ifdef STOPVISOR_SCHED_TSAN
  // What was on the stack belongs to a fiber that will not go on; TSan forgets it with the mapping.
  if (stack_ != nullptr)
    munmap(std::exchange(stack_, nullptr), kStackBytes);
#endif
  if (stack_ == nullptr) {
    void* const memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
      std::abort();
    stack_ = static_cast<std::byte*>(memory);
    mprotect(stack_, 4096, PROT_NONE); // an overflow faults
  }
#ifdef STOPVISOR_ASAN
  __asan_unpoison_memory_region(stack_ + 4096, kStackBytes - 4096);
#endif
#ifdef STOPVISOR_SCHED_TSAN
  if (tsan_fiber_ != nullptr)
    __tsan_destroy_fiber(tsan_fiber_);
  tsan_fiber_ = __tsan_create_fiber(0);
#endif
  auto* top = reinterpret_cast<uintptr_t*>(stack_ + kStackBytes);
  *--top = 0; // the return address of entry(): ends back traces, and aligns the stack as after a call
  *--top = reinterpret_cast<uintptr_t>(entry);
  for (int saved_register = 0; saved_register < 6; ++saved_register)
    *--top = 0;
  saved_ = top;
}

void Fiber::switch_between(Fiber& from, Fiber& to) noexcept {
#ifdef STOPVISOR_SCHED_TSAN
  if (from.tsan_fiber_ == nullptr)
    from.tsan_fiber_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(to.tsan_fiber_, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef STOPVISOR_ASAN
  static const OwnStack own;
  __sanitizer_start_switch_fiber(&from.fake_stack_, to.stack_ != nullptr ? to.stack_ : own.bottom,
                                 to.stack_ != nullptr ? kStackBytes : own.size);
#endif
  stopvisor_switch_stack(&from.saved_, to.saved_);
#ifdef STOPVISOR_ASAN
  __sanitizer_finish_switch_fiber(from.fake_stack_, nullptr, nullptr);
#endif
}

void Fiber::arrived() noexcept {
#ifdef STOPVISOR_ASAN
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

void Fiber::publish([[maybe_unused]] const void* name) noexcept {
#ifdef STOPVISOR_SCHED_TSAN
  __tsan_release(const_cast<void*>(name));
#endif
}

void Fiber::seen([[maybe_unused]] const void* name) noexcept {
#ifdef STOPVISOR_SCHED_TSAN
  __tsan_acquire(const_cast<void*>(name));
#endif
}

} // namespace stopvisor::sched
