// SPDX-License-Identifier: Apache-2.0
// The options of run as they are given, and what several of them mean alike in every way to start a VM.
//
// There are three such ways: a new machine (machine_options.h), a snapshot (restore_options.h) and a guest that
// comes by migration (incoming_options.h). Each refuses what does not go with it.
#pragma once

#include <cstddef>
#include <expected>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tools/stopvisor/verb.h"
#include "vmm/error.h"
#include "vmm/restore_choices.h"
#include "vmm/vm.h"

namespace stopvisor::tools {

// kUsage, of one option; `value` is empty where it is not its value that is wrong.
[[nodiscard]] vmm::Error option_error(const char* option, std::string_view value, std::string reason);

// An option, and whether it is given.
using OptionGiven = std::pair<const char*, bool>;

// RETURNS: kUsage with `reason` for the first that is given.
[[nodiscard]] std::expected<void, vmm::Error> refuse_given(std::initializer_list<OptionGiven> options,
                                                           const char* reason);

// Where the guest's serial port leads to.
struct SerialChoice {
  vmm::SerialTarget target = vmm::SerialTarget::kNone;
  std::string path; // of kFile
};

// CONTEXT, of its functions: any thread. None blocks.
struct RunOptions {
  // These must not move from now on, until the command line has been parsed.
  void declare(Arguments& arguments);

  // None of the options that say what the machine is. RETURNS: kUsage with `reason`, which says what describes it.
  [[nodiscard]] std::expected<void, vmm::Error> check_machine_is_not_described(const char* reason) const;
  // RETURNS: kUsage for a --name that is no VM's.
  [[nodiscard]] std::expected<void, vmm::Error> check_name() const;
  // Of --memory-backing; none: not given. RETURNS: kUsage.
  [[nodiscard]] std::expected<std::optional<vmm::MemoryBacking>, vmm::Error> memory_backing() const;
  // Of --clock. RETURNS: kUsage.
  [[nodiscard]] std::expected<vmm::WallClock, vmm::Error> wall_clock() const;
  // Of --disk N=FILE: images by the disks' numbers. RETURNS: kUsage, also for a disk that has two.
  [[nodiscard]] std::expected<std::map<size_t, std::string>, vmm::Error> disk_places() const;
  // Of --serial; `stdout_taken`: stdout is for something else, as with --json. RETURNS: kUsage.
  [[nodiscard]] std::expected<SerialChoice, vmm::Error> serial_choice(bool stdout_taken) const;

  std::optional<std::string> name;
  std::optional<std::string> machine;
  std::optional<std::string> cpus;
  std::optional<std::string> max_cpus;
  std::optional<std::string> memory;
  std::optional<std::string> backing;
  std::optional<std::string> kernel;
  std::optional<std::string> initrd;
  std::optional<std::string> cmdline;
  std::vector<std::string> disks;
  std::vector<std::string> nets;
  std::optional<std::string> serial;
  std::optional<std::string> restore;
  std::optional<std::string> key;
  std::optional<std::string> expect_id;
  bool disks_as_they_are = false;
  std::optional<std::string> verify;
  bool prefault = false;
  std::optional<std::string> clock;
  bool share = false;
  std::optional<std::string> incoming;
  bool insecure = false;
  std::optional<std::string> keep;
  bool paused = false;
  bool detach = false;
};

} // namespace stopvisor::tools
