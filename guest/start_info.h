// SPDX-License-Identifier: Apache-2.0
// What the loader hands over at a PVH entry: memory map and command line.
#pragma once

#include <stdint.h>

namespace stopvisor::probe {

// RAM as the memory map tells it, as far as this guest uses it.
struct Memory {
  uint64_t total_bytes = 0; // RAM of all kinds of ranges
  uint64_t low_end = 0;     // end of the RAM range that holds 1 MiB
  uint64_t high_end = 0;    // end of the RAM range that begins at 4 GiB, 0 where there is none
};

struct StartInfo; // hvm_start_info

// Reads the memory map. A loader older than version 1 gives none: then every field is 0.
Memory read_memory_map(const StartInfo* info);

// Copies the command line, cut to `size` - 1 characters and terminated. A missing one is empty.
void read_command_line(const StartInfo* info, char* to, uint32_t size);

} // namespace stopvisor::probe
