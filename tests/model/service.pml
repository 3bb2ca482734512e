// SPDX-License-Identifier: Apache-2.0
// Stops shared between clients: who leads, callbacks that are run together, holds that are counted, and the end.
//
// It follows stopper/stop_service.h. The machine below it is one bit here, `held`: stop.pml is about the rest. What is
// asked: every callback runs exactly once and under a stop, every caller gets its answer, the guest is held exactly as
// long as somebody holds it, and after close() it is let go for good.

#ifndef RUNS
#define RUNS 2 // clients that call run()
#endif
#ifndef HOLDS
#define HOLDS 1 // clients that call acquire_hold(), and later release_hold()
#endif
#ifndef DEADLINE
#define DEADLINE 0 // bit mask: clients that have a deadline, which may pass at any time
#endif
#define N (RUNS + HOLDS)
#define HAS_DEADLINE(id) (((DEADLINE >> (id)) & 1) != 0)

#define QUEUED 0
#define LEADS 1
#define DONE 2

chan queue = [N] of { byte }; // requests, in order; all of it under lock_
byte phase[N];
byte asleep[N];
bool somebody_leads;
byte holds;
bool stop;        // stop_: the service has a stop
bool held;        // the machine: everybody is held
byte closed;      // 1: the machine refuses; 2: close() has returned
byte ran[N];      // executions of the client's callback
byte mine[N];     // holds that the client has and was told of
bool failed[N];

hidden byte callback_runs_under_a_stop;
hidden byte callback_ran_exactly_once;
hidden byte hold_keeps_the_guest_held;
hidden byte nobody_is_held_after_close;

inline release_stop() { stop = 0; held = 0 }

inline pass_on_lead() {
  if
  :: queue ? [next] -> queue ? <next>; phase[next] = LEADS; asleep[next] = 0
  :: empty(queue) ->
    somebody_leads = 0;
#ifndef MUTANT_LEADER_GIVES_UP_WITH_STOP
    if :: holds == 0 -> release_stop() :: else fi
#endif
  fi;
  next = 0
}

// A request of client `me`: serve(). `failed` where it was refused.
inline serve(is_hold) {
  atomic { queue!me; phase[me] = QUEUED; leads = !somebody_leads; somebody_leads = 1 };
  if
  :: !leads ->
    // await_turn()
    do
    :: phase[me] != QUEUED -> break
    :: atomic { phase[me] == QUEUED -> asleep[me] = 1 };
      if
      :: asleep[me] == 0
      :: HAS_DEADLINE(me) && !late -> late = 1; asleep[me] = 0; // until the lock is ours, we may be made the leader
        atomic {
          if
          :: queue ?? [eval(me)] ->
            leads = (phase[me] == LEADS);
            queue ?? eval(me);
#ifndef MUTANT_LEAD_IS_LOST
            if :: leads -> pass_on_lead() :: else fi;
#endif
            failed[me] = 1;
            goto served
          :: else // it is being executed
          fi
        }
      fi
    od
  :: else
  fi;
  leads = 0;
  if
  :: phase[me] == DONE -> goto served
  :: else
  fi;
  // lead()
  if
  :: stop
  :: !stop && closed -> refused = 1
  :: !stop && !closed ->
    // The machine gathers. It looked at closed_ before; the end may come meanwhile.
    if
    :: held = 1; stop = 1
    :: HAS_DEADLINE(me) -> refused = 1
    fi
  fi;
  if
  :: refused -> atomic { refused = 0; queue ?? eval(me); pass_on_lead(); failed[me] = 1; goto served }
  :: else
  fi;
  // drain()
  do
  :: atomic {
      if
      :: empty(queue) || !first -> // nothing left, or the budget is spent
        if
        :: holds == 0 -> release_stop()
        :: else
        fi;
        pass_on_lead();
        first = 1;
        goto served
      :: nempty(queue) ->
        queue ? other;
        if
#ifdef MUTANT_HOLD_AFTER_CLOSE
        :: other >= RUNS -> holds++
#else
        :: other >= RUNS && !closed -> holds++
        :: other >= RUNS && closed -> failed[other] = 1
#endif
        :: else
        fi
      fi
    };
    atomic {
      if
      :: other < RUNS ->
        callback_runs_under_a_stop = (held && stop);
        assert(callback_runs_under_a_stop);
        ran[other]++;
        callback_ran_exactly_once = (ran[other] == 1);
        assert(callback_ran_exactly_once)
      :: other >= RUNS && !failed[other] -> mine[other] = 1
      :: else
      fi
    };
    atomic { phase[other] = DONE; asleep[other] = 0; other = 0; first = 0 }
  od;
served:
  skip
}

byte ended; // clients that got their answer

active [RUNS + HOLDS] proctype Client() {
  byte me = _pid;
  byte next, other;
  bool leads, refused, late, first = 1;

  serve(me >= RUNS);
  d_step {
    callback_ran_exactly_once = (me >= RUNS || ran[me] == !failed[me]);
    assert(callback_ran_exactly_once)
  };
  if
  :: me >= RUNS && !failed[me] ->
    // It has the hold now, for as long as it likes: for ever, too, as only the end of the VM must not wait for it.
    d_step { hold_keeps_the_guest_held = (held || closed); assert(hold_keeps_the_guest_held) };
#ifdef CLOSE
    if
    :: true -> goto keeps // a client that never gives it back
    :: true
    fi;
#endif
    // release_hold()
    atomic {
      d_step { hold_keeps_the_guest_held = (held || closed); assert(hold_keeps_the_guest_held) };
      if
      :: holds > 0 ->
        holds--;
        if
#ifdef MUTANT_RELEASED_BY_THE_FIRST
        :: !somebody_leads -> release_stop()
#else
        :: holds == 0 && !somebody_leads -> release_stop()
#endif
        :: else
        fi
      :: else
      fi;
      mine[me] = 0
    }
  :: else
  fi;
keeps:
  ended++;
  // All have their answers: the guest is held if and only if somebody holds it.
#ifdef CLOSE
  (ended == N && closed == 2);
#else
  (ended == N);
#endif
  d_step {
#ifdef CLOSE
    nobody_is_held_after_close = !held;
    assert(nobody_is_held_after_close)
#else
    hold_keeps_the_guest_held = !held;
    assert(hold_keeps_the_guest_held)
#endif
  }
}

#ifdef CLOSE
active proctype End() {
  closed = 1;
  atomic {
    holds = 0;
    if
    :: !somebody_leads -> release_stop()
    :: else
    fi;
    closed = 2
  }
}
#endif
