// SPDX-License-Identifier: Apache-2.0
#include "tools/stopvisor/progress_line.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "tools/stopvisor/output.h"

namespace stopvisor::tools {

ProgressLine::ProgressLine() : terminal_(::isatty(STDERR_FILENO) == 1) {}

ProgressLine::~ProgressLine() {
  if (shown_)
    (void)std::fputs("\r\033[K", stderr);
}

void ProgressLine::show(const std::string& what, uint64_t done, uint64_t total) {
  if (!terminal_)
    return;
  std::string line = what;
  if (total != 0) {
    const uint64_t percent = std::min<uint64_t>(100, static_cast<uint64_t>(100.0 * double(done) / double(total)));
    line += ": " + human_size(done) + " of " + human_size(total) + " (" + std::to_string(percent) + "%)";
  }
  (void)std::fprintf(stderr, "\r\033[K%s", line.c_str());
  shown_ = true;
}

} // namespace stopvisor::tools
