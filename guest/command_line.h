// SPDX-License-Identifier: Apache-2.0
// What the command line asks of the probe guest.
#pragma once

#include "guest/probe_abi.h"

#include <stdint.h>

namespace stopvisor::probe {

enum class BootFault : uint32_t { kNone, kTriple, kUndefined, kCrash, kEmulation };

struct Options {
  uint32_t scenarios = kGap | kLedger | kCode | kIo;
  uint32_t cpus = 0; // 0: not told
  uint64_t dirty_bytes = uint64_t{64} << 20;
  uint64_t dirty_rate = 0;
  uint64_t exit_after_slices = 0; // 0: never
  uint32_t timer_hz = 100;        // 0: no timer
  BootFault boot_fault = BootFault::kNone;
};

// Called with each word that is not understood; the text is not terminated.
using UnknownWord = void (*)(const char* word, uint32_t length);

// Reads the words of a command line. A word with a bad value counts as unknown and changes nothing.
// Pure but for the call-back: it can be compiled and tested on the host.
Options parse_command_line(const char* text, UnknownWord unknown);

} // namespace stopvisor::probe
