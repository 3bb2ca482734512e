// SPDX-License-Identifier: Apache-2.0
// A device with a thread of its own, as that thread (DeviceWorker) sees it.
#pragma once

namespace stopvisor::vmm {

class WorkerDevice {
public:
  virtual ~WorkerDevice() = default;
  // Does one job, if there is one. A stop waits for its end, so it is short: a long one is cut into several.
  // CONTEXT: the worker's thread, not held; must not call the stopper. RETURNS: false where there was none.
  [[nodiscard]] virtual bool do_job() noexcept = 0;
};

} // namespace stopvisor::vmm
