// SPDX-License-Identifier: Apache-2.0
// A device with a thread of its own, as that thread (DeviceWorker) sees it.
#pragma once

namespace stopvisor::vmm {

// A descriptor that may bring a job, as for poll(2).
struct Watch {
  int fd = -1; // -1: none
  short events = 0;
};

class WorkerDevice {
public:
  virtual ~WorkerDevice() = default;
  // Does one job, if there is one. A stop waits for its end, so it is short: a long one is cut into several.
  // CONTEXT: the worker's thread, not held; must not call the stopper. RETURNS: false where there was none.
  [[nodiscard]] virtual bool do_job() noexcept = 0;
  // What may bring a job besides the worker's wake(), asked for before each sleep: a device that could do nothing
  // with what it would be told leaves it out, or its worker would not sleep. Only where the worker sleeps on
  // descriptors. CONTEXT: the worker's thread, after do_job() said that there is no job.
  [[nodiscard]] virtual Watch watch() noexcept { return {}; }
};

} // namespace stopvisor::vmm
