// SPDX-License-Identifier: Apache-2.0
// Measures what a stop costs: the bare kick below it, the stop in this process, over the socket, in the guest, and
// the peer's.
#pragma once

#include <cstdint>
#include <expected>
#include <optional>

#include "tools/bench/percentiles.h"
#include "vmm/error.h"

namespace stopvisor::tools {

// The kinds of stop, each as its caller sees it.
struct KindFigures {
  Percentiles one;                // stop_one_cpu(), to its return
  std::optional<Percentiles> two; // a partial stop of two vCPUs; none where there is one
  Percentiles all;                // a full stop, all held
};

// One line of the table; times in nanoseconds.
struct StopFigures {
  uint32_t cpus = 0;
  Percentiles floor;                    // bare signal to all vCPUs seen out
  Percentiles held;                     // stop asked for to all held, as the caller sees it
  Percentiles release;                  // letting go, as the caller sees it
  KindFigures lifted;                   // who is late is lifted, where the process may
  KindFigures plain;                    // nobody is
  Percentiles pause;                    // round trip over the socket
  Percentiles resume;                   // the same
  Percentiles gap;                      // the guest's largest TSC jump around one empty stop
  Percentiles gap_idle;                 // the same over a time without a stop: the host's own noise
  std::optional<Percentiles> qemu_stop; // QMP round trips
  std::optional<Percentiles> qemu_cont;
};

struct StopBenchOptions {
  uint32_t rounds = 1000;
  bool qemu = false;
};

// CONTEXT: starts VMs in this process and as children; blocks for a few seconds.
[[nodiscard]] std::expected<StopFigures, vmm::Error> bench_stop(uint32_t cpus, const StopBenchOptions& options);

} // namespace stopvisor::tools
