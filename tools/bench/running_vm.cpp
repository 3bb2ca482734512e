// SPDX-License-Identifier: Apache-2.0
#include "tools/bench/running_vm.h"

#include <thread>
#include <utility>

namespace stopvisor::tools {

std::expected<std::unique_ptr<RunningVm>, vmm::Error> RunningVm::start(uint32_t cpus) {
  vmm::VmConfig config;
  config.name = "bench";
  config.cpus = cpus;
  config.memory_bytes = 64ULL << 20;
  config.cmdline = "scenarios=gap";
  auto vm = vmm::Vm::create(config);
  if (!vm)
    return std::unexpected(vm.error());
  std::unique_ptr<RunningVm> running(new RunningVm(std::move(*vm)));
  if (auto started = running->vm->start(); !started)
    return std::unexpected(started.error());
  if (auto ready = running->probe.await_running(cpus, kPatience, [&] { return running->alive(); }); !ready)
    return std::unexpected(ready.error());
  return running;
}

RunningVm::~RunningVm() {
  vm->request_end({vmm::EndKind::kRequested, ""});
  vm->wait_for_end();
}

void let_run(uint32_t cpus) {
  std::this_thread::sleep_for(std::chrono::microseconds(200 + 20 * cpus));
}

} // namespace stopvisor::tools
