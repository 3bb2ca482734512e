// SPDX-License-Identifier: Apache-2.0
#include "tools/demonstration/timeline.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>

namespace stopvisor::tools {
namespace {

double microseconds(int64_t nanoseconds) {
  return static_cast<double>(nanoseconds) / 1000.0;
}

// A worker that was at rest was not kicked, nor did it come out of anything.
int64_t began(const stopper::ParticipantReport& participant) {
  return participant.kicked_ns != 0 ? participant.kicked_ns : participant.held_ns;
}

std::string name_of(const vmm::Vm& vm, const stopper::ParticipantReport& participant) {
  for (const vmm::WorkerStatus& worker : vm.worker_status())
    if (participant.worker && worker.participant == participant.cpu)
      return worker.name;
  return (participant.worker ? "worker " : "vCPU ") + std::to_string(participant.cpu);
}

} // namespace

std::string draw_timeline(const vmm::Vm& vm, const stopper::StopReport& report, unsigned columns) {
  if (report.participants.empty() || columns == 0)
    return {};
  int64_t begin = INT64_MAX;
  int64_t end = 0;
  for (const stopper::ParticipantReport& participant : report.participants) {
    begin = std::min(begin, began(participant));
    end = std::max(end, participant.released_ns);
  }
  const int64_t length = std::max<int64_t>(end - begin, 1);
  std::string text;
  for (const stopper::ParticipantReport& participant : report.participants) {
    std::string bar;
    for (unsigned column = 0; column < columns; ++column) {
      const int64_t at = begin + length * column / columns;
      if (at < began(participant) || at >= participant.released_ns)
        bar += ' ';
      else if (at < participant.out_ns)
        bar += '.';
      else
        bar += at < participant.held_ns ? '-' : '#';
    }
    char line[256];
    std::snprintf(line, sizeof line, "  %-10s |%s| out %6.1f  held %6.1f  released %6.1f\n",
                  name_of(vm, participant).c_str(), bar.c_str(),
                  microseconds(participant.out_ns != 0 ? participant.out_ns - begin : 0),
                  microseconds(participant.held_ns - begin), microseconds(participant.released_ns - begin));
    text += line;
  }
  char line[160];
  std::snprintf(line, sizeof line, "  asked to all held %.1f us, all held to let go %.1f us, hold %.1f us\n",
                microseconds(report.all_held_ns - report.requested_ns),
                microseconds(report.exit_ns - report.all_held_ns), microseconds(report.hold_ns()));
  return text + line;
}

} // namespace stopvisor::tools
