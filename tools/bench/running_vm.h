// SPDX-License-Identifier: Apache-2.0
// A VM in this process whose vCPUs all spin in the probe guest, ended with the object.
#pragma once

#include <chrono>
#include <cstdint>
#include <expected>
#include <memory>

#include "tools/probe/probe_view.h"
#include "vmm/error.h"
#include "vmm/vm.h"

namespace stopvisor::tools {

inline constexpr unsigned kPatience = 60; // seconds for anything a guest is asked to do
inline constexpr std::chrono::milliseconds kTimeout{10'000};

class RunningVm {
public:
  // Returns when every vCPU runs. CONTEXT: blocks. RETURNS: what Vm and ProbeView::await_running() say.
  [[nodiscard]] static std::expected<std::unique_ptr<RunningVm>, vmm::Error> start(uint32_t cpus);
  ~RunningVm();
  [[nodiscard]] bool alive() const { return vm->state() != vmm::VmState::kEnded; }

  std::unique_ptr<vmm::Vm> vm;
  ProbeView probe;

private:
  explicit RunningVm(std::unique_ptr<vmm::Vm> made) : vm(std::move(made)), probe(vm->memory()) {}
};

// Lets the guest run between two stops: each vCPU should be back in it. CONTEXT: blocks.
void let_run(uint32_t cpus);

} // namespace stopvisor::tools
