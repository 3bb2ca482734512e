// SPDX-License-Identifier: Apache-2.0
// Who is at the other end of a control connection.
#pragma once

#include <sys/types.h>

#include <cstdint>

namespace stopvisor::vmm {

// The peer's credentials at the time it connected (SO_PEERCRED, unix(7)).
struct Peer {
  pid_t pid = 0;
  uid_t uid = 0;
};

// Counts connections from 1; a lease belongs to one.
using ConnectionId = uint64_t;

} // namespace stopvisor::vmm
