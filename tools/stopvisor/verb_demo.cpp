// SPDX-License-Identifier: Apache-2.0
// demo: shows what a stop is.
#include "tools/demonstration/demonstration.h"
#include "tools/stopvisor/verb.h"

namespace stopvisor::tools {
namespace {

class DemoVerb final : public Verb {
public:
  const char* name() const noexcept override { return "demo"; }
  const char* summary() const noexcept override { return "Show what a stop is, on a guest of our own"; }
  const char* details() const noexcept override {
    return "Starts the built-in probe guest with 4 vCPUs, changes its memory and its code under stops, and shows\n"
           "what the guest itself saw of it. Exit status 0: it saw nothing torn.";
  }
  void declare(Arguments& /*arguments*/) override {}
  std::expected<int, vmm::Error> run(bool json) override {
    if (json)
      return std::unexpected(
          vmm::Error{"demo", "", "has nothing to say in JSON; see 'bench stop --json'", vmm::Status::kUsage});
    if (auto shown = demonstrate(); !shown)
      return std::unexpected(shown.error());
    return 0;
  }
};

} // namespace

std::unique_ptr<Verb> make_demo() {
  return std::make_unique<DemoVerb>();
}

} // namespace stopvisor::tools
