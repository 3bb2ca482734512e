// SPDX-License-Identifier: Apache-2.0
// The stop protocol: stoppers, multi-stops, deadline, exit acknowledgement, hotplug, and whoever asks for stops.
//
// It follows stopper/multi_stop.h and stopper/stop_machine_gather.h statement by statement: one step here is one atomic
// operation there. The names are theirs. What a kick does inside the vCPU thread is in kick.pml; here it is one bit.
//
// An instance is chosen by defines, from run.py:
//   NV, NW            vCPUs (numbered from 0) and device workers (from NV)
//   C0 .. C2          what each client does, one thing after the other: a list of calls, see CLIENT CALLS
//   PARKS             bit mask: participants that take themselves offline once, at any time
//   OFFLINE           bit mask: vCPUs that begin offline
//   STUCK             bit mask: vCPUs that may get stuck, and come back only when client 0 has had its first stop
//   DEADLINE          a deadline may pass whenever somebody waits with one
//   LOST              so many kicks may be lost; whoever waits kicks again
//   EXITS             so many exits the guest makes by itself, each vCPU; 255: without end
//   KICK              kicks as signals; without it a kick is seen at once, which kick.pml justifies
//   MUTANT_...        a mistake, which must be found
//
// Limits: memory is sequentially consistent (docs/explanation/ordering.md argues the orders); a lock is one step to
// take, and what is done under one lock is one step, as nobody can see it half done; the spin before a wait is left
// out, as it ends in the same futex call.

#ifndef NV
#define NV 2
#endif
#ifndef NW
#define NW 0
#endif
#ifndef PARKS
#define PARKS 0
#endif
#ifndef OFFLINE
#define OFFLINE 0
#endif
#ifndef STUCK
#define STUCK 0
#endif
#ifndef LOST
#define LOST 0
#endif
#ifndef EXITS
#define EXITS 1
#endif
#ifndef C0
#define C0 hold_all(0)
#endif

#define NP (NV + NW)
#define NC 3
#define BIT(i) (1 << (i))
#define ALL_VCPUS (BIT(NV) - 1)
#define ALL_WORKERS (BIT(NP) - BIT(NV))
#define IN(mask, i) (((mask) & BIT(i)) != 0)

// MultiStopState
#define NONE 0
#define PREPARE 1
#define DISABLE 2
#define RUN 3
#define EXIT 4

// A gate
#define SHUT 0
#define OPEN 1
#define ABORTED 2

typedef Multi {
  byte state;
  byte acks[5];
  byte workers_in;
  byte run_gate;
  byte worker_gate;
  byte vcpu_gate;
  // Plan, and what of it is known to all before the works are queued:
  byte vcpus;   // bit masks
  byte workers;
  byte runners; // run the callback
  bool coordinator_runs;
  bool whole;   // a stop of everybody, not of some vCPUs
  bool aborted;
  byte excused; // found offline when the work was to be queued
  byte came;    // workers: the worker, or the coordinator that caught it at rest, has acknowledged DisableIrq
  byte caught;  // found at rest
  // To check the properties; no part of the protocol:
  byte sequence;
  byte inside;  // executions of the callback going on
  byte ran;     // executions begun
};

// 0 and 1 are wides_, the stop machine's own, which take turns; a client's `w` is the one it has.
#define IS_WIDE(m) ((m) < 2)
#define TWO(id) (2 + (id)) // on the stack of client `id`
#ifdef HAS_TWO
#define STOPS (2 + HAS_TWO)
#else
#define STOPS 2
#endif
#define ONE 7       // a work of stop_one_cpu()

Multi stops[STOPS];

chan queue[NP] = [4] of { byte }; // a stopper's FIFO
bool locked[NP];                  // its lock, where more than one is taken
bool online[NP];
#ifdef KICK
bool sig[NP];                     // a signal on its way
#endif
bool held[NP];                    // from just before its first acknowledgement until it passed the last gate
bool in_guest[NP];                // a vCPU: guest code runs. A worker: it writes guest memory
byte asleep[NP + NC];             // in a futex wait on this word; 0: not
#if NW > 0
bool at_rest[NP];                 // a worker between rest() and rise()
#endif

bool in_progress;                 // stop_cpus_in_progress_
bool facility;                    // facility_
bit present;                      // wide_: under facility_
byte readers;                     // hotplug_
bool writer;
bool writer_waits;
byte workers_held;                // bit mask, for the two properties about workers
byte lost = LOST;                 // kicks that may still be lost
bool had_first;                   // client 0 had its first stop (STUCK)
byte one_ran;                     // stop_one_cpu(): executions
bool one_done;

// The properties. Hidden: written where they are asserted, no part of the state.
hidden byte callback_only_while_everybody_is_held;
hidden byte no_guest_code_during_a_callback;
hidden byte nobody_of_another_stop;
hidden byte callback_ran_exactly_once;
hidden byte workers_held_after_vcpus;
hidden byte workers_released_before_vcpus;
hidden byte nobody_acknowledges_twice;
hidden byte work_is_queued_once;
hidden byte offline_has_no_works;
hidden byte exit_ends_the_stop;
hidden byte k;
hidden byte n;

// ---- waiting ---------------------------------------------------------------------------------------------------

// The words that are waited on.
#define STATE_WORD(m) (1 + 4 * (m))
#define RUN_WORD(m) (2 + 4 * (m))
#define WORKER_WORD(m) (3 + 4 * (m))
#define VCPU_WORD(m) (4 + 4 * (m))
#define ONE_WORD 60

inline wake_all(word) {
  d_step {
    k = 0;
    do
    :: k < NP + NC -> if :: asleep[k] == word -> asleep[k] = 0 :: else fi; k++
    :: else -> break
    od;
    k = 0
  }
}

// Until !(as_expected). The futex compares and falls asleep in one step.
#ifdef MUTANT_SLEEP_WITHOUT_COMPARE
#define FALL_ASLEEP(as_expected, self, word) as_expected -> asleep[self] = word
#else
#define FALL_ASLEEP(as_expected, self, word) atomic { as_expected -> asleep[self] = word }
#endif
inline wait_while(as_expected, self, word) {
  do
  :: !(as_expected) -> break
  :: FALL_ASLEEP(as_expected, self, word); asleep[self] == 0
  od
}

inline store_and_wake(variable, value, word) {
  atomic { variable = value; wake_all(word) } // a wake-up that comes late does no harm: who waits looks again
}

// ---- the multi-stop ---------------------------------------------------------------------------------------------

#ifdef MUTANT_ACK_TWICE
#define CHECK_ACKS(m, s) nobody_acknowledges_twice = 1
#else
#define CHECK_ACKS(m, s) nobody_acknowledges_twice = (stops[m].acks[s] > 0); assert(nobody_acknowledges_twice)
#endif

inline open_vcpu_gates(m) {
  if
  :: stops[m].run_gate == SHUT && stops[m].runners != 0 -> store_and_wake(stops[m].run_gate, ABORTED, RUN_WORD(m))
  :: else
  fi;
  store_and_wake(stops[m].vcpu_gate, OPEN, VCPU_WORD(m))
}

inline worker_out(m) {
  d_step { stops[m].workers_in--; last = (stops[m].workers_in == 0) };
  if
  :: last -> open_vcpu_gates(m)
  :: else
  fi
}

// fetch_sub; `last` tells whether it was the last.
inline count_down(m, s) {
  d_step {
    CHECK_ACKS(m, s);
    stops[m].acks[s]--;
    last = (stops[m].acks[s] == 0)
  }
}

#if NW > 0
// Under the stopper's lock: whoever has not risen goes on resting. Never the last acknowledgement: whoever opens the
// gates owes one.
inline let_lie(m) {
#ifdef MUTANT_WORK_LEFT_AT_REST
  skip
#else
  atomic {
    if
    :: IN(stops[m].caught, NV) && queue[NV] ?? [eval(m)] ->
      queue[NV] ?? eval(m);
      held[NV] = 0;
      workers_held = workers_held & ~BIT(NV);
      won = 1
    :: else -> won = 0
    fi
  };
  if
  :: won -> won = 0; worker_out(m); count_down(m, EXIT)
  :: else
  fi
#endif
}
#else
inline let_lie(m) { skip }
#endif

inline open_gates(m, workers_are_in) {
#ifdef MUTANT_VCPUS_RELEASED_FIRST
  open_vcpu_gates(m);
#endif
  if
  :: !(workers_are_in) -> open_vcpu_gates(m)
  :: (workers_are_in) ->
    let_lie(m);
    if
    :: stops[m].workers != 0 -> store_and_wake(stops[m].worker_gate, OPEN, WORKER_WORD(m))
    :: else
    fi;
    worker_out(m)
  fi
}

inline advance(m, begin) {
  from = begin;
  do
  :: d_step {
      next = (from == EXIT -> NONE : from + 1);
      if
      :: stops[m].state == from -> stops[m].state = next; won = 1
      :: else -> won = 0
      fi
    };
    if
    :: !won -> break
    :: won && next == DISABLE ->
      if
      :: stops[m].workers == 0 -> from = next
      :: else -> wake_all(STATE_WORD(m)); break
      fi
    :: won && next == RUN ->
      if
      :: stops[m].acks[RUN] == 0 -> from = next // every runner was excused
      :: else ->
        if :: stops[m].coordinator_runs || stops[m].runners == 0 -> wake_all(STATE_WORD(m)) :: else fi;
        if :: stops[m].runners != 0 -> store_and_wake(stops[m].run_gate, OPEN, RUN_WORD(m)) :: else fi;
        break
      fi
    :: won && next == EXIT ->
      open_gates(m, true);
#ifndef MUTANT_NO_WAKE_AT_EXIT
      if :: !stops[m].coordinator_runs -> wake_all(STATE_WORD(m)) :: else fi;
#endif
      count_down(m, EXIT);
      if
      :: last -> from = next
      :: else -> break
      fi
    :: won && next == NONE ->
#ifndef MUTANT_NO_WAKE_AT_NONE
      wake_all(STATE_WORD(m));
#endif
      break
    fi
  od;
  atomic { from = 0; next = 0; won = 0; last = 0 }
}

inline ack(m, s) {
  count_down(m, s);
  if
  :: last -> advance(m, s)
  :: else
  fi;
  last = 0
}

// ---- participants -------------------------------------------------------------------------------------------------

// What a callback relies on: checked as it begins; that nobody enters the guest after that, where it is entered.
inline callback_begins(m) {
  d_step {
    k = 0;
    callback_only_while_everybody_is_held = 1;
    do
    :: k < NP ->
      if
      :: stops[m].whole && online[k] && !held[k] -> callback_only_while_everybody_is_held = 0
      :: IN(stops[m].vcpus & ~stops[m].excused, k) && !held[k] -> callback_only_while_everybody_is_held = 0
      :: else
      fi;
      if
      :: (stops[m].whole || IN(stops[m].vcpus, k)) && in_guest[k] -> callback_only_while_everybody_is_held = 0
      :: else
      fi;
      k++
    :: else -> break
    od;
    assert(callback_only_while_everybody_is_held);
    stops[m].inside++;
    stops[m].ran++
  }
}

inline callback_ends(m) { stops[m].inside-- }

inline enter_guest(i) {
  d_step {
    k = 0;
    no_guest_code_during_a_callback = 1;
    do
    :: k < STOPS ->
      if
      :: stops[k].inside > 0 && (stops[k].whole || IN(stops[k].vcpus, i)) -> no_guest_code_during_a_callback = 0
      :: else
      fi;
      k++
    :: else -> break
    od;
    assert(no_guest_code_during_a_callback);
    in_guest[i] = 1
  }
}

#define CHECK_SEQUENCE(m) nobody_of_another_stop = (stops[m].sequence == mine); assert(nobody_of_another_stop)

inline hold_vcpu(m) {
  atomic { held[me] = 1; mine = stops[m].sequence };
#ifdef MUTANT_ACK_TWICE
  if :: me == 0 -> ack(m, PREPARE) :: else fi;
#endif
  ack(m, PREPARE);
  if
  :: IN(stops[m].runners, me) ->
    wait_while(stops[m].run_gate == SHUT, me, RUN_WORD(m));
    CHECK_SEQUENCE(m);
    if
    :: stops[m].run_gate == OPEN ->
      callback_begins(m);
      callback_ends(m);
      ack(m, RUN)
    :: else
    fi
  :: else
  fi;
  wait_while(stops[m].vcpu_gate == SHUT, me, VCPU_WORD(m));
  atomic {
    CHECK_SEQUENCE(m);
    workers_released_before_vcpus = (!IS_WIDE(m) || !stops[m].whole || (stops[m].workers & workers_held) == 0);
    assert(workers_released_before_vcpus);
    held[me] = 0
  };
#ifndef MUTANT_NO_EXIT_ACK
  ack(m, EXIT);
#endif
  mine = 0
}

inline hold_worker(m) {
  atomic {
    mine = stops[m].sequence;
    // Each vCPU of the stop is held: no new request can come. (After an abort nobody is, and nothing is run.)
    n = 0;
    workers_held_after_vcpus = 1;
    do
    :: n < NV ->
      if
      :: stops[m].state < EXIT && IN(stops[m].vcpus & ~stops[m].excused, n) && !held[n] ->
        workers_held_after_vcpus = 0
      :: else
      fi;
      n++
    :: else -> break
    od;
    assert(workers_held_after_vcpus);
    held[me] = 1;
    workers_held = workers_held | BIT(me)
  };
  atomic {
    won = !IN(stops[m].came, me);
#ifdef MUTANT_RISER_ACKS_TOO
    won = 1;
#endif
    stops[m].came = stops[m].came | BIT(me)
  };
  if
  :: won -> won = 0; ack(m, DISABLE)
  :: else
  fi;
  wait_while(stops[m].worker_gate == SHUT, me, WORKER_WORD(m));
  atomic { CHECK_SEQUENCE(m); held[me] = 0; workers_held = workers_held & ~BIT(me) };
  worker_out(m);
  ack(m, EXIT);
  mine = 0
}

// run_works()
inline take_work() { atomic { !locked[me] && nempty(queue[me]) -> queue[me]?stop } }
inline run_vcpu_works() {
  do
  :: take_work();
    if
    :: stop == ONE ->
      atomic {
        // Not beside the callback of a stop: such a stop either waits for us, or for this work to be through.
        callback_only_while_everybody_is_held =
          ((stops[0].inside == 0 || !stops[0].whole) && (stops[1].inside == 0 || !stops[1].whole));
        assert(callback_only_while_everybody_is_held);
        one_ran++;
        callback_ran_exactly_once = (one_ran == 1);
        assert(callback_ran_exactly_once)
      };
      store_and_wake(one_done, 1, ONE_WORD)
    :: else -> hold_vcpu(stop)
    fi;
    stop = 0
  :: empty(queue[me]) -> break
  od
}
inline run_worker_works() {
  do
  :: take_work(); hold_worker(stop); stop = 0
  :: empty(queue[me]) -> break
  od
}

// park(): the flag changes only while the queue is empty; else what is queued runs first. RETURNS `parking`: done.
inline disable_if_idle() {
  atomic {
    !locked[me] ->
#if defined(MUTANT_PARK_WITHOUT_DRAIN) || defined(MUTANT_PARK_DISABLES_FIRST)
    online[me] = 0; may_park = 0; parking = 1
#else
    if
    :: empty(queue[me]) -> online[me] = 0; may_park = 0; parking = 1
    :: else
    fi
#endif
  }
}

proctype Vcpu(byte me) {
  byte stop, mine, from, next;
  bool won, last, parking;
  bool may_park = IN(PARKS, me);
  byte exits = EXITS;

  if :: !online[me] -> goto end_parked :: else fi;
top:
#ifdef KICK
  // A signal that came before the clear is spent; one that comes later ends KVM_RUN (kick.pml).
  if :: atomic { sig[me] -> sig[me] = 0 } :: true fi;
#endif
#if STUCK
  if :: IN(STUCK, me) && !had_first -> had_first :: true fi; // blocked in a device, say
#endif
  if
  :: nempty(queue[me])
  :: empty(queue[me]) -> goto enter
#if PARKS
  :: may_park ->
    disable_if_idle();
#ifdef MUTANT_PARK_WITHOUT_DRAIN
    parking = 0;
    goto end_parked
#endif
#endif
  fi;
#if PARKS && !defined(MUTANT_PARK_DISABLES_FIRST)
  if
  :: parking ->
    parking = 0;
    atomic { offline_has_no_works = (empty(queue[me]) || online[me]); assert(offline_has_no_works) };
    goto end_parked
  :: else
  fi;
#endif
  run_vcpu_works();
#ifdef MUTANT_PARK_DISABLES_FIRST
  if :: parking -> parking = 0; goto end_parked :: else fi;
#endif
  goto top;

end_parked:
  online[me];
  goto top;

enter:
  enter_guest(me);
end_in_guest:
  // Out by a kick, or because the guest made an exit.
  if
#ifdef KICK
  :: atomic { sig[me] -> sig[me] = 0; in_guest[me] = 0 }
#else
  :: atomic { nempty(queue[me]) -> in_guest[me] = 0 }
#endif
  :: atomic { exits > 0 -> if :: exits != 255 -> exits-- :: else fi; in_guest[me] = 0 }
  fi;
  goto top
}

#if NW > 0
// A device worker: it serves requests by writing guest memory. Its wait is a counter (an eventfd), so that a kick
// cannot be lost.
proctype Worker(byte me) {
  byte stop, mine, from, next;
  bool won, last, parking;
  bool may_park = IN(PARKS, me);
  byte requests = 1;

end_idle:
  do
  :: nempty(queue[me]) -> run_worker_works()
  :: atomic { empty(queue[me]) -> at_rest[me] = 1 };
end_at_rest:
    if
    :: requests > 0 // it is woken; whoever catches it here does not kick it
#if PARKS
    :: may_park
#endif
    fi;
    at_rest[me] = 0;
    // It looks for works before it looks for requests.
    if :: nempty(queue[me]) -> run_worker_works() :: empty(queue[me]) fi
  :: atomic { requests > 0 -> requests--; enter_guest(me) }; in_guest[me] = 0
#if PARKS
  :: may_park ->
    disable_if_idle();
    if
    :: parking -> parking = 0;
end_parked:
      online[me]
    :: else -> run_worker_works()
    fi
#endif
  od
}
#endif

// ---- whoever asks for stops -----------------------------------------------------------------------------------

#ifdef KICK
#if LOST
inline kick(i) {
  if
  :: sig[i] = 1
  :: atomic { lost > 0 -> lost-- }
  fi
}
#else
inline kick(i) { sig[i] = 1 }
#endif
#else
inline kick(i) { skip }
#endif

inline read_lock() { atomic { !writer && !writer_waits -> readers++ } }
inline read_unlock() { readers-- }
inline write_lock() { atomic { !writer && !writer_waits -> writer_waits = 1 }; atomic { readers == 0 -> writer = 1; writer_waits = 0 } }
inline write_unlock() { writer = 0 }

inline take_facility() {
  atomic { !facility -> facility = 1 };
#ifdef MUTANT_ONE_BARRIER
  w = present;
#else
  atomic { if :: stops[present].state == NONE -> w = present :: else -> w = 1 - present fi };
#ifndef MUTANT_NEXT_STOP_DOES_NOT_WAIT
  wait_while(stops[w].state == EXIT, self, STATE_WORD(w));
#endif
#endif
  present = w
}

inline drop_facility() { atomic { w = 0; facility = 0 } } // w: forgotten

#define COUNT(mask) ((mask) & 1) + (((mask) >> 1) & 1) + (((mask) >> 2) & 1) + (((mask) >> 3) & 1)

inline arm(m, the_vcpus, the_workers, the_runners, coordinator, everybody) {
  d_step {
    k = 0;
    do
    :: k < NP ->
      work_is_queued_once = !(queue[k] ?? [eval(m)]);
      assert(work_is_queued_once);
      k++
    :: else -> break
    od;
    stops[m].vcpus = the_vcpus;
    stops[m].workers = the_workers;
    stops[m].runners = the_runners;
    stops[m].coordinator_runs = coordinator;
    stops[m].whole = everybody;
    stops[m].aborted = 0;
    stops[m].excused = 0;
    stops[m].came = 0;
    stops[m].caught = 0;
#ifdef MUTANT_COORDINATOR_STAYS_OUT
    stops[m].acks[PREPARE] = COUNT(stops[m].vcpus);
#else
    stops[m].acks[PREPARE] = COUNT(stops[m].vcpus) + 1;
#endif
    stops[m].acks[DISABLE] = COUNT(stops[m].workers >> NV);
    stops[m].acks[RUN] = COUNT(stops[m].runners) + coordinator;
    stops[m].acks[EXIT] = COUNT(stops[m].vcpus) + COUNT(stops[m].workers >> NV) + 2;
#ifdef MUTANT_NO_EXIT_ACK
    stops[m].acks[EXIT] = COUNT(stops[m].workers >> NV) + 2;
#endif
    stops[m].workers_in = COUNT(stops[m].workers >> NV) + 1;
    stops[m].run_gate = SHUT;
    stops[m].worker_gate = SHUT;
    stops[m].vcpu_gate = SHUT;
    stops[m].sequence++;
    stops[m].inside = 0;
    stops[m].ran = 0;
    stops[m].state = PREPARE
  }
}

inline excuse(m, i) {
  // One step for three: until our own acknowledgement of Prepare nobody looks whether these have come to zero.
  atomic {
    stops[m].excused = stops[m].excused | BIT(i);
    stops[m].acks[PREPARE]--;
    stops[m].acks[EXIT]--;
    if :: IN(stops[m].runners, i) -> stops[m].acks[RUN]-- :: else fi
  }
}

inline queue_all(m) {
  in_progress = 1;
  i = 0;
  do
  :: i < NV && IN(stops[m].vcpus, i) ->
#ifdef MUTANT_SIGNAL_BEFORE_QUEUE
    kick(i);
#endif
    atomic {
      !locked[i] ->
      if
      :: online[i] -> queue[i]!m
      :: else -> excuse(m, i)
      fi;
      i++
    }
  :: i < NV && !IN(stops[m].vcpus, i) -> i++
  :: else -> break
  od;
  in_progress = 0;
#if defined(KICK) && !defined(MUTANT_SIGNAL_BEFORE_QUEUE)
  i = 0;
  do
  :: i < NV ->
    if :: IN(stops[m].vcpus & ~stops[m].excused, i) -> kick(i) :: else fi;
    i++
  :: else -> break
  od;
#endif
  i = 0
}

#if NW > 0
inline excuse_worker(m, i) {
  stops[m].excused = stops[m].excused | BIT(i);
  worker_out(m);
  count_down(m, EXIT);
  ack(m, DISABLE)
}

inline catch_worker(m, i) {
  atomic {
    if
    :: !IN(stops[m].came, i) ->
      stops[m].came = stops[m].came | BIT(i);
      stops[m].caught = stops[m].caught | BIT(i);
      held[i] = 1;
      workers_held = workers_held | BIT(i);
      won = 1
    :: else -> won = 0
    fi
  };
  if
  :: won -> won = 0; ack(m, DISABLE)
  :: else
  fi
}

// Under the stopper's lock: one at rest is caught, if it has nothing else to do first.
inline queue_workers(m) {
  i = NV;
  do
  :: i < NP ->
    if
    :: !IN(stops[m].workers, i)
    :: IN(stops[m].workers, i) ->
      atomic {
        late = 0;
        if
        :: online[i] ->
          late = (at_rest[i] && empty(queue[i])); // here: caught
#ifdef MUTANT_REST_IS_LET_BE
          if :: !late -> queue[i]!m :: else fi;
#else
          queue[i]!m;
#endif
          won = 1
        :: else -> won = 0
        fi
      };
      if
      :: !won -> excuse_worker(m, i)
      :: won && !late -> won = 0
      :: won && late ->
        won = 0;
        late = 0;
        catch_worker(m, i)
      fi
    fi;
    i++
  :: else -> break
  od;
  i = 0
}
#endif

// await_moving_on(): `late` tells whether the deadline passed first.
inline await_moving_on(m, begin) {
  do
  :: stops[m].state != begin -> break
  :: FALL_ASLEEP(stops[m].state == begin, self, STATE_WORD(m));
    if
    :: asleep[self] == 0
#ifdef DEADLINE
    :: atomic { asleep[self] != 0 -> asleep[self] = 0; late = 1; break }
#endif
#if LOST
    :: atomic { queue[0] ?? [eval(m)] && !sig[0] -> asleep[self] = 0 }; kick(0)
    :: atomic { queue[1] ?? [eval(m)] && !sig[1] -> asleep[self] = 0 }; kick(1)
#endif
    fi
  od
}

inline call_off(m, begin) {
#ifdef MUTANT_ABORT_WITHOUT_EXCHANGE
  if
  :: stops[m].state == begin -> stops[m].state = EXIT; stops[m].aborted = 1; won = 1
  :: else -> won = 0
  fi;
#else
  atomic {
    if
    :: stops[m].state == begin -> stops[m].state = EXIT; stops[m].aborted = 1; won = 1
    :: else -> won = 0
    fi
  };
#endif
  if
  :: won ->
    won = 0;
#ifndef MUTANT_GATES_SHUT_AFTER_ABORT
    open_gates(m, (begin == DISABLE));
#endif
    i = NV;
    do
    :: begin == PREPARE && i < NP && IN(stops[m].workers, i) -> ack(m, EXIT); i++ // their works were never queued
    :: begin == PREPARE && i < NP && !IN(stops[m].workers, i) -> i++
    :: else -> break
    od;
    ack(m, EXIT); // the gates are open
    i = 0;
    do
    :: i < NP ->
#ifndef MUTANT_ABORT_LEAVES_WORKS
      atomic {
        !locked[i] ->
        if
        :: queue[i] ?? [eval(m)] -> queue[i] ?? eval(m); won = 1
        :: else -> won = 0
        fi
      };
      if
      :: won ->
        won = 0;
#ifndef MUTANT_NOT_DISOWNED
        if :: i >= NV -> worker_out(m) :: else fi;
        ack(m, EXIT)
#endif
      :: else
      fi;
#endif
      i++
    :: else -> break
    od;
    i = 0
  :: else
  fi;
  late = 0
}

inline gather(m) {
  queue_all(m);
#if NW > 0 && defined(MUTANT_WORKERS_WITH_VCPUS)
  queue_workers(m);
#endif
#ifndef MUTANT_COORDINATOR_STAYS_OUT
  ack(m, PREPARE);
#endif
  await_moving_on(m, PREPARE);
  if
  :: late -> call_off(m, PREPARE)
  :: else
  fi;
#if NW > 0
  if
  :: stops[m].workers == 0 || stops[m].aborted
  :: else ->
#ifndef MUTANT_WORKERS_WITH_VCPUS
    queue_workers(m);
#endif
    await_moving_on(m, DISABLE);
    if
    :: late -> call_off(m, DISABLE)
    :: else
    fi
  fi
#endif
}

inline leave(m) {
  ack(m, EXIT);
  do
  :: stops[m].state == NONE -> break
  :: atomic { stops[m].state != NONE -> asleep[self] = STATE_WORD(m) }; asleep[self] == 0
  od
}

// The stop is over, and its owner has not given it up yet.
inline check_ran(m) {
  atomic {
    callback_ran_exactly_once =
      (stops[m].ran == (stops[m].aborted -> 0 : COUNT(stops[m].runners & ~stops[m].excused) + stops[m].coordinator_runs));
    assert(callback_ran_exactly_once)
  }
}

#define ONLINE_VCPUS ((online[0] * 1 + online[1] * 2 + ONLINE_THIRD) & ALL_VCPUS)
#if NV > 2
#define ONLINE_THIRD online[2] * 4
#else
#define ONLINE_THIRD 0
#endif
#if NW > 0
#define ONLINE_WORKERS (online[NV] * BIT(NV))
#else
#define ONLINE_WORKERS 0
#endif

// ---- CLIENT CALLS ------------------------------------------------------------------------------------------------

// hold(), and the release: the coordinator does in Run what it likes, and does not wait for the others to leave.
inline hold_some(id, cpus, everybody) {
  read_lock();
  take_facility();
  i = ONLINE_VCPUS & (cpus);
  if
  :: i == 0 && !(everybody) // no such vCPU
  :: else ->
    if
    :: everybody -> arm(w, i, ONLINE_WORKERS, 0, 1, 1)
    :: else -> arm(w, i, 0, 0, 1, 0)
    fi;
    i = 0;
    gather(w);
    if
    :: !stops[w].aborted ->
      wait_while(stops[w].state == DISABLE, self, STATE_WORD(w));
      callback_begins(w);
      callback_ends(w);
      check_ran(w);
      ack(w, RUN);
      ack(w, EXIT)
    :: else ->
      leave(w);
      check_ran(w)
    fi
  fi;
  i = 0;
  if :: id == 0 -> had_first = 1 :: else fi;
  drop_facility();
  read_unlock()
}
inline hold_all(id) { hold_some(id, ALL_VCPUS, 1) }
inline hold_first(id) { hold_some(id, BIT(0), 0) }

inline stop_owned(id, the_runners, local_runs) {
  i = ONLINE_VCPUS;
  arm(w, i, ONLINE_WORKERS, (the_runners) & i, local_runs, 1);
  i = 0;
  gather(w);
#if defined(HAS_INACTIVE)
  if
  :: stops[w].aborted || !local_runs
  :: else ->
    wait_while(stops[w].state == DISABLE, self, STATE_WORD(w));
    callback_begins(w);
    callback_ends(w);
    ack(w, RUN)
  fi;
#endif
  leave(w);
  check_ran(w);
  if :: id == 0 -> had_first = 1 :: else fi
}

// stop_machine(), the callback on the threads of `runner_mask`.
inline stop_machine(id, runner_mask) {
  read_lock();
  take_facility();
  // None of them online: nothing is armed.
  if
  :: (ONLINE_VCPUS & (runner_mask)) == 0
  :: else -> stop_owned(id, runner_mask, 0)
  fi;
  drop_facility();
  read_unlock()
}

// unpark(): waits for a vCPU to be offline first; where that never is, this client may stay.
inline unpark(cpu) {
  skip;
end_never_offline:
  !online[cpu];
#ifdef MUTANT_UNPARK_WITHOUT_LOCK
  online[cpu] = 1
#else
  write_lock();
  atomic { !locked[cpu] -> online[cpu] = 1 };
  write_unlock()
#endif
}

// A vCPU that is being added: the others are stopped while it and vCPU 0 run the callback, then it comes online.
inline bring_up(id, cpu) {
  write_lock();
  take_facility();
  stop_owned(id, BIT(0), 1);
  drop_facility();
  write_unlock();
  unpark(cpu)
}

// stop_two_cpus(): the callback on `one`.
inline stop_two(id, one, two, lower, upper) {
  arm(TWO(id), BIT(one) | BIT(two), 0, BIT(one), 0, 0);
#ifdef MUTANT_QUEUE_TWO_WITHOUT_LOCK
  atomic { if :: online[lower] -> queue[lower]!TWO(id); won = 1 :: else fi };
  if :: won -> queue[upper]!TWO(id) :: else fi;
#else
  do
  ::
#ifdef MUTANT_LOCKS_UNORDERED
    atomic { !locked[one] -> locked[one] = 1 };
    atomic { !locked[two] -> locked[two] = 1 };
#else
    atomic { !locked[lower] -> locked[lower] = 1 };
    atomic { !locked[upper] -> locked[upper] = 1 };
#endif
    atomic {
      if
      :: !online[lower] || !online[upper] -> i = 2
#ifndef MUTANT_IN_PROGRESS_IGNORED
      :: online[lower] && online[upper] && in_progress -> i = 1
#endif
      :: else -> i = 0; queue[lower]!TWO(id); queue[upper]!TWO(id); won = 1
      fi
    };
    locked[upper] = 0;
    locked[lower] = 0;
    if
    :: i == 1 -> i = 0; !in_progress
    :: else -> i = 0; break
    fi
  od;
#endif
  if
  :: won ->
    won = 0;
    kick(one);
    kick(two);
    ack(TWO(id), PREPARE);
    await_moving_on(TWO(id), PREPARE);
    if
    :: late -> call_off(TWO(id), PREPARE)
    :: else
    fi;
    leave(TWO(id));
    check_ran(TWO(id))
  :: else // one of them is offline; nothing was queued
  fi;
  stops[TWO(id)].state = NONE
}

// stop_one_cpu()
inline stop_one(cpu) {
  atomic { !locked[cpu] -> if :: online[cpu] -> queue[cpu]!ONE; won = 1 :: else fi };
  if
  :: won ->
    won = 0;
    kick(cpu);
    do
    :: one_done -> break
    :: FALL_ASLEEP(!one_done, self, ONE_WORD);
      if
      :: asleep[self] == 0
#ifdef DEADLINE
      :: atomic { asleep[self] != 0 && !late -> asleep[self] = 0 };
        late = 1;
        atomic {
          !locked[cpu] ->
          if
          :: queue[cpu] ?? [eval(ONE)] -> queue[cpu] ?? eval(ONE); won = 1
          :: else
          fi
        };
        if :: won -> break :: else fi
#endif
      fi
    od;
    atomic {
      callback_ran_exactly_once = (one_ran == (won -> 0 : 1));
      assert(callback_ran_exactly_once);
      won = 0;
      late = 0
    }
  :: else
  fi
}

#define CLIENT_VARIABLES byte i, from, next; bool won, last, late; bit w

proctype Client0() {
  byte self = NP;
  CLIENT_VARIABLES;
  C0
}
#ifdef C1
proctype Client1() {
  byte self = NP + 1;
  CLIENT_VARIABLES;
  C1
}
#endif
#ifdef C2
proctype Client2() {
  byte self = NP + 2;
  CLIENT_VARIABLES;
  C2
}
#endif

init {
  atomic {
    byte j = 0;
    do
    :: j < NP ->
      online[j] = !IN(OFFLINE, j);
      if
      :: j < NV -> run Vcpu(j)
#if NW > 0
      :: j >= NV -> run Worker(j)
#endif
      fi;
      j++
    :: else -> break
    od;
    run Client0();
#ifdef C1
    run Client1();
#endif
#ifdef C2
    run Client2();
#endif
    j = 0
  }
}

// With guests that make exits for ever and every thread scheduled now and then: whoever is held is released, every
// vCPU gets back into the guest, and the stop machine comes to rest.
#ifdef LIVENESS
#if NW > 0
ltl released { [] ((held[0] -> <> !held[0]) && (held[1] -> <> !held[1]) && (held[NV] -> <> !held[NV])) }
#else
ltl released { [] ((held[0] -> <> !held[0]) && (held[1] -> <> !held[1])) }
#endif
ltl returns { ([] <> in_guest[0]) && ([] <> in_guest[1]) }
ltl rests { <> [] (stops[0].state == NONE && stops[1].state == NONE && !facility && readers == 0) }
#endif
