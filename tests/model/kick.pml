// SPDX-License-Identifier: Apache-2.0
// One vCPU thread and those who kick it: no kick is lost, and no stop is acknowledged in the middle of an instruction.
//
// This is the loop of vmm/vcpu_thread.cpp, step by step: C clear, L look, E enter. A signal is delivered between any
// two steps of the thread while it is in user mode; inside KVM_RUN it ends KVM_RUN, and is delivered on the way out.
// Works are a count here; what they do is the matter of stop.pml.
//
// Limits: memory is sequentially consistent, but for the one store buffer of MUTANT_WRITE_FROM_OUTSIDE.

#ifndef KICKERS
#define KICKERS 2 // each queues one work after the other
#endif
#ifndef WORKS
#define WORKS 2 // by each kicker
#endif
#ifndef EXITS
#define EXITS 2 // I/O exits the guest makes; 255: without end
#endif

byte works;        // queued, not begun
byte begun;        // of each kicker's works, how many have begun
byte sig;          // real-time signals are queued, not merged
bool ie;           // run->immediate_exit
bool in_kernel;    // in KVM_RUN: signals wait
bool in_guest;     // guest code may run
bool incomplete;   // an access was served, KVM has not finished its instruction
bool more;         // it will take one access more
byte exits = EXITS; // the guest will still make

// The properties. Hidden: they are written where they are asserted, and are no part of the state.
hidden byte no_stop_inside_an_instruction;
hidden byte every_work_is_executed_once;

// KVM_RUN as it finishes the instruction: a string instruction, or an access that straddles a page, may ask for one
// more access, but not for ever: KVM leaves a repeated instruction after at most 1024.
inline complete(again) {
  again = incomplete && more;
  incomplete = again;
  more = 0
}

active proctype Vcpu() {
  bool again;
#if defined(MUTANT_CLEAR_AFTER_CHECK) || defined(MUTANT_WRITE_FROM_OUTSIDE)
  bool seen;
#endif
top:
#if defined(MUTANT_CLEAR_AFTER_CHECK)
  seen = (works > 0);
  ie = 0;
  if :: seen -> goto serve :: else fi;
#elif defined(MUTANT_WRITE_FROM_OUTSIDE)
  // The store of C waits in this CPU's store buffer while L's load goes ahead. A handler on this thread is ordered
  // behind it; a store of another CPU is not.
  if
  :: ie = 0; seen = (works > 0)
  :: seen = (works > 0); ie = 0
  fi;
  if :: seen -> seen = 0; goto serve :: else fi;
#else
  ie = 0;                                    // C
  if :: works > 0 -> goto serve :: else fi;  // L
#endif
  // E
  atomic {
    in_kernel = 1;
    complete(again);
    if
    :: again -> again = 0; in_kernel = 0; goto top // an exit: served, and round again
    :: else
    fi;
    if
    :: ie -> in_kernel = 0; goto top // EINTR
    :: else -> in_guest = 1
    fi
  };
end_in_guest:
  if
  :: atomic { sig > 0 -> in_guest = 0; in_kernel = 0 } // EINTR
  :: atomic {
      exits > 0 ->
      if :: exits != 255 -> exits-- :: else fi;
      in_guest = 0;
      in_kernel = 0;
      incomplete = 1;
      if :: more = 1 :: more = 0 fi
    }
  fi;
  goto top;

serve:
#ifndef MUTANT_NO_COMPLETION
  // finish_instruction(): with immediate_exit set KVM completes and comes back, or asks for the next access.
  do
  :: incomplete ->
    ie = 1;
    atomic { complete(again); again = 0 };
#ifdef MUTANT_COMPLETE_ONCE
    break
#endif
  :: !incomplete -> break
  od;
#endif
  do
  :: atomic {
      works > 0 ->
      no_stop_inside_an_instruction = !incomplete;
      assert(no_stop_inside_an_instruction);
      works--;
      begun++;
    }
  :: works == 0 -> break
  od;
  goto top
}

active proctype Handler() {
end_idle:
  do
  :: atomic {
      sig > 0 && !in_kernel ->
      sig--;
#if !defined(MUTANT_EMPTY_HANDLER) && !defined(MUTANT_WRITE_FROM_OUTSIDE)
      ie = 1
#endif
    }
  od
}

byte finished; // kickers

active [KICKERS] proctype Kicker() {
  byte mine;
  do
  :: mine < WORKS ->
#ifdef MUTANT_SIGNAL_BEFORE_QUEUE
    sig++;
    works++;
#else
    works++;
#ifdef MUTANT_WRITE_FROM_OUTSIDE
    ie = 1;
#endif
    sig++;
#endif
    mine++
  :: else -> break
  od;
  // What every client does: it waits until its works have been executed. A lost kick is a deadlock here.
  atomic { begun == KICKERS * WORKS -> finished++ };
  every_work_is_executed_once = (begun == KICKERS * WORKS && works == 0);
  assert(every_work_is_executed_once)
}

// With a guest that makes exits for ever: whatever is queued is executed, if every thread is scheduled now and then.
ltl served { [] ((works > 0) -> <> (works == 0)) }
