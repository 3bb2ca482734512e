// SPDX-License-Identifier: Apache-2.0
// Runs one VM in this process, from claiming its name to its end.
#pragma once

#include <expected>
#include <functional>
#include <string>

#include "vmm/control/socket_place.h"
#include "vmm/vm.h"

namespace stopvisor::snapshot {
class Restoration;
}

namespace stopvisor::tools {

struct VmProcessEnd {
  std::string name;
  vmm::VmEnd end;
  int signal = 0; // the one that ended it, or 0
};

// For the log.
[[nodiscard]] std::string how_it_ended(const vmm::VmEnd& end);

// Runs the VM of `config` (an empty name: a generated one) until its guest, a client or a signal ends it. Where
// `restoration` is given the guest goes on from there. `ready` is called once, when its control socket answers.
// However it ends, nothing is left behind: no thread, no socket, the terminal as it was. Only a second signal,
// while the first is served, ends the process at once (128 + the signal): the terminal is given back then, and the
// socket stays, for the next who takes the name. CONTEXT: once a process, from its only thread; SIGINT, SIGTERM,
// SIGHUP and SIGQUIT stay blocked after it. RETURNS: kUsage for a bad configuration, kRefused where the name is
// taken, kFailed for what the host refuses.
[[nodiscard]] std::expected<VmProcessEnd, vmm::Error>
run_vm(vmm::VmConfig config, snapshot::Restoration* restoration,
       const std::function<void(const vmm::ControlPlace&)>& ready);

} // namespace stopvisor::tools
