// SPDX-License-Identifier: Apache-2.0
// What a user says of one disk.
#pragma once

#include <string>

namespace stopvisor::vmm {

struct DiskConfig {
  std::string path; // a raw image, or a block device
  bool read_only = false;
};

} // namespace stopvisor::vmm
