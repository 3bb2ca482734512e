// SPDX-License-Identifier: Apache-2.0
// What a program that posix_spawn starts is given: its signals, its process group and its descriptors.
//
// Our threads block signals that a program of somebody else's has to hear, so no child keeps our mask.
#pragma once

#include <spawn.h>

#include <csignal>

namespace stopvisor::vmm {

// The two argument objects of posix_spawn. No signal is blocked in the child; its descriptors are ours that are not
// close-on-exec, but for what is added to `actions`. CONTEXT: one thread.
struct SpawnArguments {
  SpawnArguments() {
    ::posix_spawnattr_init(&attributes);
    ::posix_spawn_file_actions_init(&actions);
    sigset_t none;
    ::sigemptyset(&none);
    ::posix_spawnattr_setsigmask(&attributes, &none);
    ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  }
  ~SpawnArguments() {
    ::posix_spawn_file_actions_destroy(&actions);
    ::posix_spawnattr_destroy(&attributes);
  }
  SpawnArguments(const SpawnArguments&) = delete;
  SpawnArguments& operator=(const SpawnArguments&) = delete;

  // The child leads a process group of its own, in which all of it can be signalled, with all signals at their
  // defaults: also those that we ignore.
  void lead_own_group() {
    sigset_t all;
    ::sigfillset(&all);
    ::posix_spawnattr_setsigdefault(&attributes, &all);
    ::posix_spawnattr_setpgroup(&attributes, 0);
    ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
  }

  posix_spawnattr_t attributes{};
  posix_spawn_file_actions_t actions{};
};

} // namespace stopvisor::vmm
