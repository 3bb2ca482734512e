// SPDX-License-Identifier: Apache-2.0
// What the calling thread is in the middle of: so that a call that would wait for itself is refused instead.
//
// A thread may be several things at once (the owner of stops of two machines that move a guest from one to the
// other), and may leave them in any order; hence a list, kept in the thread's slot and walked by that thread alone.
#pragma once

#include "stopper/cpu_mask.h"

namespace stopvisor::stopper {

struct ThreadMark {
  const void* machine = nullptr;
  CpuId participant = kMaxCpus; // which one's thread it is; kMaxCpus: it runs a callback or owns a stop
  ThreadMark* next = nullptr;
};

template <class P>
class BasicThreadMarks {
public:
  // CONTEXT, for all: the thread concerned. `mark` stays where it is until it is taken out.
  static void put(ThreadMark& mark) noexcept {
    mark.next = first();
    P::thread_slot() = &mark;
  }
  // Nothing happens where it is not there.
  static void take(ThreadMark& mark) noexcept {
    ThreadMark* before = nullptr;
    for (ThreadMark* entry = first(); entry != nullptr; before = entry, entry = entry->next)
      if (entry == &mark) {
        if (before != nullptr)
          before->next = mark.next;
        else
          P::thread_slot() = mark.next;
        return;
      }
  }
  // RETURNS: the first mark of `machine`, except for that of its participant `but`; or null.
  [[nodiscard]] static ThreadMark* find(const void* machine, CpuId but = kMaxCpus) noexcept {
    ThreadMark* entry = first();
    while (entry != nullptr && (entry->machine != machine || (but != kMaxCpus && entry->participant == but)))
      entry = entry->next;
    return entry;
  }

private:
  static ThreadMark* first() noexcept { return static_cast<ThreadMark*>(P::thread_slot()); }
};

// For the length of a callback.
template <class P>
class BasicInsideCallback {
public:
  explicit BasicInsideCallback(const void* machine) noexcept : mark_{.machine = machine} {
    BasicThreadMarks<P>::put(mark_);
  }
  ~BasicInsideCallback() { BasicThreadMarks<P>::take(mark_); }
  BasicInsideCallback(const BasicInsideCallback&) = delete;
  BasicInsideCallback& operator=(const BasicInsideCallback&) = delete;

private:
  ThreadMark mark_;
};

} // namespace stopvisor::stopper
