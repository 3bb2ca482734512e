// SPDX-License-Identifier: Apache-2.0
// The `stopvisor` command: finds the verb, lets it work, and turns errors into one line and an exit status.
#include <csignal>
#include <cstdio>
#include <exception>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "tools/stopvisor/command_line.h"
#include "tools/stopvisor/output.h"
#include "tools/stopvisor/verb.h"
#include "vmm/did_you_mean.h"

namespace stopvisor::tools {
namespace {

constexpr const char* kVersion = STOPVISOR_VERSION; // from meson.build

struct VerbEntry {
  const char* name;
  std::unique_ptr<Verb> (*make)();
};

// The table of verbs, in the order --help shows them.
constexpr std::array kVerbs{
    VerbEntry{"run", make_run},           VerbEntry{"ls", make_ls},
    VerbEntry{"status", make_status},     VerbEntry{"console", make_console},
    VerbEntry{"pause", make_pause},       VerbEntry{"resume", make_resume},
    VerbEntry{"hold", make_hold},         VerbEntry{"peek", make_peek},
    VerbEntry{"poke", make_poke},         VerbEntry{"patch", make_patch},
    VerbEntry{"snapshot", make_snapshot}, VerbEntry{"migrate", make_migrate},
    VerbEntry{"regs", make_regs},         VerbEntry{"guest", make_guest},
    VerbEntry{"cpu", make_cpu},           VerbEntry{"shutdown", make_shutdown},
    VerbEntry{"bench", make_bench},       VerbEntry{"demo", make_demo},
};

void print_help() {
  std::string text = "Stopvisor runs virtual machines, and stops them all at once.\n\n"
                     "Usage: stopvisor VERB [ARGUMENTS]\n\nVerbs:\n";
  for (const VerbEntry& entry : kVerbs) {
    std::string name = entry.name;
    name.resize(12, ' ');
    text += "  " + name + entry.make()->summary() + "\n";
  }
  text += "\nEvery verb takes --json and --help.\n\n"
          "Exit status: 0 done, 1 failed, 2 wrong usage, 3 refused by a check, nothing changed,\n"
          "4 busy or deadline passed, try again, 5 what is there is not what we wrote.\n\n"
          "Examples:\n"
          "  stopvisor run --name vm1 --cpus 4 --detach   start the built-in probe guest\n"
          "  stopvisor ls                                 see what runs\n"
          "  stopvisor hold vm1 --max 200ms -- CMD        run CMD while the guest is held\n"
          "  stopvisor shutdown vm1                       press its power button\n";
  print_text(text);
}

vmm::Error unknown_verb(std::string_view given) {
  std::vector<std::string> verbs;
  verbs.reserve(kVerbs.size());
  for (const VerbEntry& entry : kVerbs)
    verbs.emplace_back(entry.name);
  const std::string meant = vmm::did_you_mean(given, verbs);
  const std::string hint = meant.empty() ? "; see 'stopvisor --help'" : "; did you mean '" + meant + "'?";
  return {std::string(given.substr(0, 60)), "", "no such verb" + hint, vmm::Status::kUsage};
}

int run_verb(const VerbEntry& entry, std::span<char*> arguments, bool json) {
  const std::unique_ptr<Verb> verb = entry.make();
  const auto line = parse_command_line(*verb, arguments);
  if (!line) {
    // Not parsed, so looked for by hand: a script that asked for JSON gets its error as JSON too.
    json =
        json || std::ranges::any_of(arguments, [](const char* text) { return std::string_view(text) == "--json"; });
    return print_error(line.error(), entry.name, json);
  }
  if (line->help) {
    print_text(line->help_text);
    return finish_output(0, entry.name);
  }
  json = json || line->json;
  const auto status = verb->run(json);
  return status ? finish_output(*status, entry.name) : print_error(status.error(), entry.name, json);
}

const VerbEntry* find_verb(std::string_view word) {
  const auto entry = std::ranges::find_if(kVerbs, [word](const VerbEntry& verb) { return word == verb.name; });
  return entry == kVerbs.end() ? nullptr : &*entry;
}

int run_help(const char* word, bool json) {
  const VerbEntry* entry = find_verb(word);
  if (entry == nullptr)
    return print_error(unknown_verb(word), "", json);
  std::string option = "--help";
  std::array<char*, 1> arguments{option.data()};
  return run_verb(*entry, arguments, json);
}

int run_command(std::span<char*> arguments) {
  bool json = false;
  for (; !arguments.empty(); arguments = arguments.subspan(1)) {
    const std::string_view word = arguments.front();
    if (word == "--json") {
      json = true;
      continue;
    }
    if (word == "help" && arguments.size() > 1) // "help VERB" is "VERB --help"
      return run_help(arguments[1], json);
    if (word == "--help" || word == "-h" || word == "help") {
      print_help();
      return finish_output(0, "help");
    }
    if (word == "--version") {
      print_text(std::string("stopvisor ") + kVersion + "\n");
      return finish_output(0, "version");
    }
    const VerbEntry* entry = find_verb(word);
    if (entry == nullptr)
      return print_error(unknown_verb(word), "", json);
    return run_verb(*entry, arguments.subspan(1), json);
  }
  return print_error({"", "", "no verb given; see 'stopvisor --help'", vmm::Status::kUsage}, "", json);
}

} // namespace
} // namespace stopvisor::tools

int main(int argc, char** argv) {
  // The vCPU kick: only vCPU threads take it, and every thread inherits this mask.
  sigset_t kick;
  sigemptyset(&kick);
  sigaddset(&kick, SIGRTMIN);
  pthread_sigmask(SIG_BLOCK, &kick, nullptr);
  try {
    return stopvisor::tools::run_command({argv + 1, size_t(std::max(argc - 1, 0))});
  } catch (const std::exception& error) { // out of memory and the like: nothing of ours throws
    std::fprintf(stderr, "stopvisor: %s\n", error.what());
    return 1;
  }
}
