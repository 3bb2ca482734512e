// SPDX-License-Identifier: Apache-2.0
// The hand-over of a migration: which side may run the guest, whatever is lost and whoever dies.
//
// It follows docs/adr/0024-hand-over.md. Memory and state are one message here, `prepare`: what is in them is for the
// checksums. A link that breaks loses what is under way, or does not, and each side notices at a time of its own; the
// source may dial again, with either word: by itself, or as its operator wants it. Either process may die at any time,
// and its guest and its locks with it; a destination that has given up answers for a while and ends. An operator does
// only what the ADR allows.
//
// With DISKS, whoever runs the guest has the locks of its disks: the source gives them back before it says commit,
// the destination takes them when it hears that, or gives up, and a source that takes the guest back waits until it
// has them again. Somebody else may take them in between (OTHERS).
//
// What is asked: never do both sides run the guest, nor either without the locks; a guest that has run at the
// destination never runs at the source again, but at an operator's word; no destination gives up for locks that the
// source still has; when all has come to rest somebody runs the guest, or whoever still lives says that it is in
// doubt, or waits for its disks; and where nobody dies and the last link holds, somebody runs it in the end.

#ifndef LINKS
#define LINKS 2 // the first, and as often as the source dials again
#endif
#ifndef BREAKS
#define BREAKS LINKS // links that may break
#endif
#ifndef CRASHES
#define CRASHES 0 // processes that may die
#endif
#ifndef OTHERS
#define OTHERS 0 // times that somebody else takes the disks
#endif

// To the destination: all there is to know; start; do not start. To the source: I could; I run it; I never will.
mtype = { prepare, commit, abandon, prepared, running, abandoned };

chan to_d[LINKS] = [3] of { mtype };
chan to_s[LINKS] = [3] of { mtype };
bool broken[LINKS];
byte dialled = 1; // links made so far: both sides use the newest they know of
byte heard;       // the destination's: what came by an older one is no longer read
byte crashes;
byte breaks;

mtype = { waits, decided, doubts, returns, gone, runs, dead };
mtype = { loads, ready, orphaned, started, gave_up, ended };
mtype = { nobody, at_source, at_destination, elsewhere };
mtype source = waits;
mtype destination = loads;
bool source_guest;        // the guest runs there
bool destination_guest;
bool ever_at_destination;
bool operator_spoke;
bool cancelled; // the source was asked to take the guest back
mtype disks = at_source; // who has their locks
byte others;

hidden byte one_side_runs;
hidden byte runs_with_its_disks;
hidden byte gives_up_for_a_reason;
hidden byte no_way_back;
hidden byte somebody_runs_or_says;

#define rests_well (source_guest || destination_guest)
#define answers (destination != dead && destination != ended) // somebody, who dials again
#define gives_up_for_good (destination == gave_up || destination == ended)

inline look() {
  one_side_runs = !(source_guest && destination_guest);
  assert(one_side_runs);
  no_way_back = !(source_guest && ever_at_destination && !operator_spoke);
  assert(no_way_back);
#ifdef DISKS
  runs_with_its_disks = ((!source_guest || disks == at_source) && (!destination_guest || disks == at_destination));
  assert(runs_with_its_disks)
#endif
}

// What is sent into a broken link is lost, or was there before it broke.
inline tell_destination(link, word) {
  if
  :: nfull(to_d[link]) -> to_d[link]!word
  :: broken[link] || full(to_d[link]) -> skip
  fi
}
inline tell_source(link, word) {
  if
  :: nfull(to_s[link]) -> to_s[link]!word
  :: broken[link] || full(to_s[link]) -> skip
  fi
}

inline runs_at_source() {
#if defined(DISKS) && !defined(MUTANT_GOES_ON_WITHOUT_DISKS)
  if
  :: disks == at_source -> source = runs; source_guest = 1; look()
  :: else -> source = returns // and says what it waits for
  fi
#else
  source = runs; source_guest = 1; look()
#endif
}
inline runs_at_destination() { destination = started; destination_guest = 1; ever_at_destination = 1; look() }

#ifdef DISKS
#define can_have_disks (disks == nobody)
#else
#define can_have_disks true
#endif
inline take_disks(whose) {
#ifdef DISKS
  disks = whose
#else
  skip
#endif
}
inline give_disks_back(whose) {
#ifdef DISKS
  if
  :: disks == whose -> disks = nobody
  :: else -> skip
  fi
#else
  skip
#endif
}
inline say_commit() {
#ifndef MUTANT_COMMITS_BEFORE_UNLOCKING
  give_disks_back(at_source);
#endif
  tell_destination(link, commit)
}

// The link is closed by the process's end: nothing more can be sent, and what was may still arrive.
inline die(whoever, guest, whose) { crashes++; whoever = dead; guest = 0; broken[dialled - 1] = 1; give_disks_back(whose) }

active proctype Source() {
  byte link;
  // The guest is held by now: it does not run here.
  tell_destination(0, prepare);
#ifdef MUTANT_HELD_TOO_LATE
  atomic { source_guest = 1; look() };
#endif
end:
  do
  // Nothing is decided: for any reason, or at a broken link, the guest goes on here.
  :: atomic { source == waits -> runs_at_source(); tell_destination(link, abandon) }
  :: atomic { source == waits && to_s[link] ? [abandoned] -> to_s[link] ? abandoned; runs_at_source() }
  :: atomic { source == waits && to_s[link] ? [prepared] -> to_s[link] ? prepared; source = decided; say_commit() }
  // Decided: only the destination's word counts.
  :: atomic { (source == decided || source == doubts) && to_s[link] ? [running] -> to_s[link] ? running; source = gone }
  :: atomic { (source == decided || source == doubts) && to_s[link] ? [abandoned] -> to_s[link] ? abandoned; runs_at_source() }
  :: atomic { source == decided && to_s[link] ? [prepared] -> to_s[link] ? prepared } // after a link is dialled again
#ifdef CANCEL
  :: atomic { source == decided && !cancelled -> cancelled = 1; tell_destination(link, abandon) }
#endif
#ifdef MUTANT_COMMITS_BEFORE_UNLOCKING
  :: atomic { source == decided && disks == at_source -> disks = nobody }
#endif
  :: atomic { source == returns && disks == nobody -> disks = at_source; source = runs; source_guest = 1; look() }
  :: atomic { source == decided && broken[link] ->
#ifdef MUTANT_RESUMES_IN_DOUBT
      runs_at_source()
#else
      source = doubts
#endif
    }
#ifndef MUTANT_NEVER_DIALS_AGAIN
  :: atomic { source == doubts && dialled < LINKS && answers -> link = dialled; dialled++; source = decided;
      if // either is safe: the destination makes up its mind once, and says what it was
      :: say_commit()
      :: tell_destination(link, abandon)
      fi
    }
#endif
#ifdef OPERATOR
  :: atomic { source == doubts && (destination == dead || gives_up_for_good) ->
      operator_spoke = 1; runs_at_source() }
  :: atomic { source == doubts && destination == started -> source = gone }
#endif
  :: atomic { crashes < CRASHES && source != dead && source != gone -> die(source, source_guest, at_source) }
  od
}

active proctype Destination() {
end:
  do
  :: atomic { destination == loads && to_d[heard] ? [prepare] ->
      to_d[heard] ? prepare; destination = ready; tell_source(heard, prepared) }
  :: atomic { (destination == ready || destination == orphaned) && to_d[heard] ? [commit] ->
      to_d[heard] ? commit;
      if
#ifdef MUTANT_STARTS_WITHOUT_DISKS
      :: true -> runs_at_destination(); tell_source(heard, running)
#else
      :: can_have_disks -> take_disks(at_destination); runs_at_destination(); tell_source(heard, running)
      :: !can_have_disks ->
          gives_up_for_a_reason = (disks == elsewhere);
          assert(gives_up_for_a_reason);
          destination = gave_up; tell_source(heard, abandoned)
#endif
      fi
    }
  :: atomic { (destination == loads || destination == ready || destination == orphaned) && to_d[heard] ? [abandon] ->
      to_d[heard] ? abandon; destination = gave_up; tell_source(heard, abandoned) }
  // It has made up its mind, and says so whenever it is asked.
  :: atomic { destination == started && (to_d[heard] ? [commit] || to_d[heard] ? [abandon]) ->
      if :: to_d[heard] ? commit :: to_d[heard] ? abandon fi;
#ifdef MUTANT_ABANDONS_WHAT_RUNS
      tell_source(heard, abandoned)
#elif !defined(MUTANT_STARTED_IS_SILENT)
      tell_source(heard, running)
#endif
    }
  :: atomic { destination == gave_up && (to_d[heard] ? [commit] || to_d[heard] ? [abandon] || to_d[heard] ? [prepare]) ->
      if :: to_d[heard] ? commit :: to_d[heard] ? abandon :: to_d[heard] ? prepare fi;
#ifdef MUTANT_GIVES_UP_IN_SILENCE
      skip
#else
      tell_source(heard, abandoned)
#endif
    }
  // It notices the break when it has read what came by the link, or does not get to read it.
  :: atomic { destination == loads && broken[heard] -> destination = gave_up }
  :: atomic { destination == ready && broken[heard] ->
#ifdef MUTANT_STARTS_WHEN_ORPHANED
      runs_at_destination()
#else
      destination = orphaned
#endif
    }
  :: atomic { heard + 1 < dialled && answers -> heard++ }
  // Who has given up answers for a while, and ends. (A source that has heard so needs it no more.)
#ifdef ENDS
  :: atomic { destination == gave_up -> destination = ended; broken[dialled - 1] = 1 }
#endif
  // Its limit of time, a word of an operator, memory that failed its check.
#ifdef LIMIT
  :: atomic { destination == loads || destination == ready || destination == orphaned ->
      destination = gave_up; tell_source(heard, abandoned) }
#endif
#ifdef OPERATOR
  :: atomic { destination == orphaned && source == dead && can_have_disks ->
      take_disks(at_destination); runs_at_destination() }
  :: atomic { destination == orphaned && source == runs -> destination = gave_up }
#endif
  :: atomic { crashes < CRASHES && destination != dead && destination != ended -> die(destination, destination_guest, at_destination) }
  od
}

active proctype Net() {
end:
  do
  :: atomic { breaks < BREAKS && !broken[dialled - 1] -> breaks++; broken[dialled - 1] = 1 }
  od
}

#if OTHERS > 0
active proctype Other() {
end:
  do
  :: atomic { disks == nobody && others < OTHERS -> others++; disks = elsewhere }
  :: atomic { disks == elsewhere -> disks = nobody }
  od
}
#endif

// When nothing more can happen.
active proctype AtRest() {
end:
  (timeout);
  d_step {
    // Whoever lives and has no guest says what it is: in doubt, waiting for its disks or for a source that is gone.
    somebody_runs_or_says =
        (rests_well || source == doubts || source == returns || destination == orphaned || crashes > 0);
    assert(somebody_runs_or_says);
#ifdef OPERATOR
    // The operator was told what to do, in each case.
    somebody_runs_or_says = (source != doubts && !(destination == orphaned && source == dead));
    assert(somebody_runs_or_says);
#endif
    skip
  }
}

// Where nobody dies and the last link holds: the source knows how it ended.
ltl settles { <> (rests_well && (source == runs || source == gone)) }
