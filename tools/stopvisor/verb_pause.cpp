// SPDX-License-Identifier: Apache-2.0
// pause and resume.
#include <chrono>

#include "tools/client/client.h"
#include "tools/stopvisor/documents.h"
#include "tools/stopvisor/output.h"
#include "tools/stopvisor/verb.h"
#include "vmm/units.h"

namespace stopvisor::tools {
namespace {

class PauseVerb final : public Verb {
public:
  const char* name() const noexcept override { return "pause"; }
  const char* summary() const noexcept override { return "Hold a VM until it is resumed"; }
  const char* details() const noexcept override {
    return "Pauses are counted: the guest runs again when each of them was given back by 'resume'. A pause\n"
           "outlives this command; for one that ends by itself see 'hold'.\n\n"
           "Example:\n  stopvisor pause vm1";
  }
  void declare(Arguments& arguments) override {
    arguments.positional("VM", vm_, "Name of the VM");
    arguments.option("--timeout", timeout_, "DURATION", "Give up, with status 4, after this long (default 5s)");
  }
  std::expected<int, vmm::Error> run(bool json) override {
    const auto timeout = parse_timeout("pause", timeout_, std::chrono::seconds(5));
    if (!timeout)
      return std::unexpected(timeout.error());
    auto client = Client::connect("pause", vm_);
    if (!client)
      return std::unexpected(client.error());
    client->set_patience(*timeout + std::chrono::seconds(5));
    const auto answer =
        client->request("POST", "/v1/pause", "{\"timeout_ms\":" + std::to_string(timeout->count()) + "}");
    if (!answer)
      return std::unexpected(answer.error());
    if (json)
      print_vm_document(vm_, *answer);
    return 0;
  }

private:
  std::string vm_;
  std::optional<std::string> timeout_;
};

class ResumeVerb final : public Verb {
public:
  const char* name() const noexcept override { return "resume"; }
  const char* summary() const noexcept override { return "Give one pause back"; }
  const char* details() const noexcept override {
    return "Gives back one pause, never somebody's lease ('hold'). Where nobody paused the VM nothing is changed\n"
           "and the exit status is 3.\n\n"
           "Example:\n  stopvisor resume vm1";
  }
  void declare(Arguments& arguments) override { arguments.positional("VM", vm_, "Name of the VM"); }
  std::expected<int, vmm::Error> run(bool json) override {
    auto client = Client::connect("resume", vm_);
    if (!client)
      return std::unexpected(client.error());
    const auto answer = client->request("POST", "/v1/resume");
    if (!answer)
      return std::unexpected(answer.error());
    if (json)
      print_vm_document(vm_, *answer);
    return 0;
  }

private:
  std::string vm_;
};

} // namespace

std::unique_ptr<Verb> make_pause() {
  return std::make_unique<PauseVerb>();
}
std::unique_ptr<Verb> make_resume() {
  return std::make_unique<ResumeVerb>();
}

} // namespace stopvisor::tools
