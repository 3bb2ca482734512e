// SPDX-License-Identifier: Apache-2.0
// patch: live patching. The work is done in the VM's process; here arguments are read and answers shown.
#include <array>
#include <charconv>
#include <chrono>
#include <fstream>

#include <nlohmann/json.hpp>

#include "tools/client/client.h"
#include "tools/patch/build.h"
#include "tools/stopvisor/documents.h"
#include "tools/stopvisor/output.h"
#include "tools/stopvisor/patch_text.h"
#include "tools/stopvisor/verb.h"
#include "vmm/boot/file.h"
#include "vmm/did_you_mean.h"
#include "vmm/units.h"

namespace stopvisor::tools {
namespace {

using Json = nlohmann::ordered_json;
using vmm::Error;
using vmm::Status;

class PatchVerb final : public Verb {
public:
  const char* name() const noexcept override { return "patch"; }
  const char* summary() const noexcept override {
    return "Change a running guest, all or nothing, and take it back";
  }
  const char* details() const noexcept override {
    return "ACTION and what it takes:\n"
           "  check VM FILE      everything but the write, under a real stop: what it would do, what speaks "
           "against it\n"
           "  apply VM FILE      write what the patch file says, in one stop\n"
           "  replace VM FILE    the same in the place of applied patches (its name, its \"replaces\"), in one "
           "stop\n"
           "  revert VM NAME     write back what was there; status 5 where somebody changed it since\n"
           "  confirm VM NAME    keep a patch that was applied with --confirm-within\n"
           "  list VM, show VM NAME\n"
           "  verify VM [NAME]   compare what patches wrote with what is there; status 5 where it differs\n"
           "  build OLD NEW      make a patch file from two builds of one ELF file\n\n"
           "A check that refuses is status 3, and nothing was written; where what refuses passes by itself (a "
           "vCPU\n"
           "inside what is changed) it is status 4, and --retries tries again.\n\n"
           "Examples:\n"
           "  stopvisor patch check vm1 fix.json\n"
           "  stopvisor patch apply vm1 fix.json --retries 20 --confirm-within 60s\n"
           "  stopvisor patch revert vm1 fix\n"
           "  stopvisor patch build vmlinux.old vmlinux.new --name fix > fix.json";
  }
  void declare(Arguments& arguments) override {
    arguments.positional("ACTION", action_, "check, apply, replace, revert, confirm, list, show, verify or build");
    arguments.rest("ARGUMENTS", words_, 1, "What the action takes, see below");
    arguments.option("--timeout", timeout_, "DURATION", "Give up, with status 4, after this long (default 5s)");
    arguments.option("--retries", retries_, "N", "Try again, so many times, where what refuses passes by itself");
    arguments.option("--max-hold", max_hold_, "DURATION", "Write nothing where the checks alone took so long");
    arguments.options("--force", force_, "CHECK", "Go on against this check; it is recorded");
    arguments.flag("--stacks", stacks_, "Refuse where a vCPU's stack leads back into a function that is changed");
    arguments.option("--confirm-within", confirm_within_, "DURATION", "Revert by itself unless confirmed by then");
    arguments.option("--symbols", symbols_, "FILE", "The kernel's vmlinux or System.map, for sym:");
    arguments.option("--name", name_, "NAME", "build: the patch's name");
    arguments.option("--patch-version", version_, "TEXT", "build: the patch's version (default 1)");
    arguments.option("--at", at_, "SPACE", "build: sym, gpa, gva, or gva@ and an address space (default sym)");
  }
  std::expected<int, Error> run(bool json) override {
    for (const Action& action : kActions)
      if (action_ == action.name)
        return run_action(action, json);
    std::vector<std::string> known;
    known.reserve(kActions.size());
    for (const Action& action : kActions)
      known.emplace_back(action.name);
    const std::string meant = vmm::did_you_mean(action_, known);
    return std::unexpected(Error{
        name(), action_,
        "no such action; " + (meant.empty() ? "see 'stopvisor patch --help'" : "did you mean '" + meant + "'?"),
        Status::kUsage});
  }

private:
  struct Action {
    const char* name;
    const char* takes;
    size_t least, most; // words
    bool changes;       // takes the options of a change
    std::expected<int, Error> (PatchVerb::*run)(bool json);
  };
  static const std::array<Action, 9> kActions;

  [[nodiscard]] Error usage(std::string object, std::string reason) const {
    return {operation(), std::move(object), std::move(reason), Status::kUsage};
  }
  [[nodiscard]] std::string operation() const {
    return action_.empty() ? "patch" : "patch " + action_.substr(0, 60);
  }

  std::expected<int, Error> run_action(const Action& action, bool json) {
    if (words_.size() < action.least || words_.size() > action.most)
      return std::unexpected(usage("", std::string("takes ") + action.takes));
    const bool build = action_ == "build";
    if (!build && (name_ || version_ || at_))
      return std::unexpected(usage("", "--name, --patch-version and --at are for 'patch build'"));
    if (!action.changes && (timeout_ || retries_ || max_hold_ || !force_.empty() || stacks_ || symbols_))
      return std::unexpected(usage("", "takes none of the options of a change"));
    if (confirm_within_ && action_ != "apply")
      return std::unexpected(usage("", "--confirm-within is for 'patch apply'"));
    return (this->*action.run)(json);
  }

  std::expected<Json, Error> change_options() {
    Json body = Json::object();
    const auto timeout = parse_timeout(operation(), timeout_, std::chrono::seconds(5));
    if (!timeout)
      return std::unexpected(timeout.error());
    patience_ = *timeout + std::chrono::seconds(5);
    body["timeout_ms"] = timeout->count();
    if (retries_) {
      uint32_t count = 0;
      const auto [end, error] = std::from_chars(retries_->data(), retries_->data() + retries_->size(), count);
      if (error != std::errc{} || end != retries_->data() + retries_->size() || count > 10'000)
        return std::unexpected(usage("--retries", "must be a number from 0 to 10000"));
      body["retries"] = count;
    }
    if (max_hold_) {
      const auto hold = vmm::parse_duration(operation() + ": --max-hold", *max_hold_);
      if (!hold)
        return std::unexpected(hold.error());
      const auto us = std::chrono::ceil<std::chrono::microseconds>(*hold).count();
      if (us < 1 || us > 10'000'000)
        return std::unexpected(usage("--max-hold", "must be more than 0 and at most 10s"));
      body["max_hold_us"] = us;
    }
    if (confirm_within_) {
      const auto within = parse_max(operation(), *confirm_within_);
      if (!within)
        return std::unexpected(usage("--confirm-within", within.error().reason));
      body["confirm_within_ms"] = within->count();
    }
    std::string forced;
    for (const std::string& check : force_)
      forced += (forced.empty() ? "" : ",") + check;
    if (!forced.empty())
      body["force"] = forced;
    if (stacks_)
      body["stacks"] = true;
    if (symbols_)
      body["symbols"] = absolute_path(*symbols_);
    return body;
  }

  // RETURNS: the VM's answer.
  std::expected<std::string, Error> ask(const char* method, const std::string& path, const Json* body) {
    auto client = Client::connect(operation(), words_[0]);
    if (!client)
      return std::unexpected(client.error());
    client->set_patience(patience_);
    return client->request(method, path,
                           body == nullptr ? "" : body->dump(-1, ' ', false, Json::error_handler_t::replace));
  }

  std::expected<int, Error> show_answer(const std::expected<std::string, Error>& answer, bool json,
                                        std::string (*text)(const Json&, const std::string&)) {
    if (!answer)
      return std::unexpected(answer.error());
    if (json) {
      print_vm_document(words_[0], *answer);
      return 0;
    }
    try {
      print_text(text(Json::parse(*answer), action_));
    } catch (const Json::exception&) {
      return std::unexpected(strange_answer(operation(), words_[0]));
    }
    return 0;
  }

  std::expected<int, Error> make(bool json) {
    auto body = change_options();
    if (!body)
      return std::unexpected(body.error());
    const auto file = vmm::read_file(operation(), words_[1], patch::kMaxManifestBytes);
    if (!file)
      return std::unexpected(file.error());
    const auto bytes = file->bytes();
    // Read here as well: what is wrong with a file needs no VM to be told.
    const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    if (const auto manifest = patch::read_manifest(operation(), text); !manifest) {
      Error error = manifest.error();
      error.object = words_[1] + ": " + error.object;
      return std::unexpected(error);
    }
    (*body)["manifest"] = text;
    return show_answer(ask("POST", "/v1/patch/" + action_, &*body), json, patch_change_text);
  }

  std::expected<int, Error> revert(bool json) {
    auto body = change_options();
    if (!body)
      return std::unexpected(body.error());
    if (words_.size() > 1)
      (*body)["name"] = words_[1];
    return show_answer(ask("POST", "/v1/patch/" + action_, &*body), json, patch_change_text);
  }

  std::expected<int, Error> confirm(bool json) {
    const Json body = {{"name", words_[1]}};
    return show_answer(ask("POST", "/v1/patch/confirm", &body), json, patch_change_text);
  }

  std::expected<int, Error> list(bool json) {
    return show_answer(ask("GET", "/v1/patches", nullptr), json, patch_list_text);
  }

  std::expected<int, Error> show(bool json) {
    return show_answer(ask("GET", "/v1/patches/" + query_value(words_[1]), nullptr), json, patch_record_text);
  }

  std::expected<int, Error> build(bool /*json*/) {
    patch::BuildOptions options;
    options.name = name_.value_or("patch");
    options.version = version_.value_or("1");
    const std::string at = at_.value_or("sym");
    if (at == "gpa")
      options.naming = patch::Naming::kPhysical;
    else if (at == "gva" || at.starts_with("gva@")) {
      options.naming = patch::Naming::kVirtual;
      options.space = at.substr(3);
    } else if (at != "sym")
      return std::unexpected(usage("--at", "must be sym, gpa, gva, or gva@ and an address space"));
    const auto before = vmm::read_file(operation(), words_[0]);
    if (!before)
      return std::unexpected(before.error());
    const auto after = vmm::read_file(operation(), words_[1]);
    if (!after)
      return std::unexpected(after.error());
    const auto manifest = patch::build_manifest({words_[0], before->bytes()}, {words_[1], after->bytes()}, options);
    if (!manifest)
      return std::unexpected(manifest.error());
    print_text(patch::write_manifest(*manifest) + "\n");
    return 0;
  }

  std::string action_;
  std::vector<std::string> words_;
  std::optional<std::string> timeout_, retries_, max_hold_, confirm_within_, symbols_, name_, version_, at_;
  std::vector<std::string> force_;
  bool stacks_ = false;
  std::chrono::milliseconds patience_{30'000};
};

const std::array<PatchVerb::Action, 9> PatchVerb::kActions{{
    {"check", "VM FILE", 2, 2, true, &PatchVerb::make},
    {"apply", "VM FILE", 2, 2, true, &PatchVerb::make},
    {"replace", "VM FILE", 2, 2, true, &PatchVerb::make},
    {"revert", "VM NAME", 2, 2, true, &PatchVerb::revert},
    {"confirm", "VM NAME", 2, 2, false, &PatchVerb::confirm},
    {"list", "VM", 1, 1, false, &PatchVerb::list},
    {"show", "VM NAME", 2, 2, false, &PatchVerb::show},
    {"verify", "VM [NAME]", 1, 2, true, &PatchVerb::revert},
    {"build", "OLD NEW", 2, 2, false, &PatchVerb::build},
}};

} // namespace

std::unique_ptr<Verb> make_patch() {
  return std::make_unique<PatchVerb>();
}

} // namespace stopvisor::tools
