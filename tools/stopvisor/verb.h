// SPDX-License-Identifier: Apache-2.0
// One verb of the command: what it takes and what it does.
//
// A verb declares its arguments to an interface, so that the command-line library is seen by one file alone,
// and returns errors as values, so that printing them and choosing the exit status is done in one place.
#pragma once

#include <expected>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "vmm/error.h"

namespace stopvisor::tools {

// Takes the declarations of a verb's arguments. What is declared must outlive the parsing.
class Arguments {
public:
  virtual ~Arguments() = default;
  // `names` as in "--max" or "-m,--max".
  virtual void flag(const char* names, bool& to, const char* help) = 0;
  virtual void option(const char* names, std::optional<std::string>& to, const char* value, const char* help) = 0;
  // With a value or without one.
  virtual void flag_or_option(const char* names, bool& given, std::optional<std::string>& to, const char* value,
                              const char* help) = 0;
  // May be given several times.
  virtual void options(const char* names, std::vector<std::string>& to, const char* value, const char* help) = 0;
  virtual void positional(const char* name, std::string& to, const char* help) = 0;
  // All that follows, at least `least` of them.
  virtual void rest(const char* name, std::vector<std::string>& to, size_t least, const char* help) = 0;
};

class Verb {
public:
  virtual ~Verb() = default;
  [[nodiscard]] virtual const char* name() const noexcept = 0;
  // One line, for the table of verbs.
  [[nodiscard]] virtual const char* summary() const noexcept = 0;
  // What --help says after the options: details and examples.
  [[nodiscard]] virtual const char* details() const noexcept = 0;
  virtual void declare(Arguments& arguments) = 0;
  // Does it. With `json` it prints one JSON document to stdout and nothing else.
  // RETURNS: the exit status; an error is printed, and its status becomes the exit status.
  [[nodiscard]] virtual std::expected<int, vmm::Error> run(bool json) = 0;
};

[[nodiscard]] std::unique_ptr<Verb> make_run();
[[nodiscard]] std::unique_ptr<Verb> make_ls();
[[nodiscard]] std::unique_ptr<Verb> make_status();
[[nodiscard]] std::unique_ptr<Verb> make_console();
[[nodiscard]] std::unique_ptr<Verb> make_pause();
[[nodiscard]] std::unique_ptr<Verb> make_resume();
[[nodiscard]] std::unique_ptr<Verb> make_hold();
[[nodiscard]] std::unique_ptr<Verb> make_peek();
[[nodiscard]] std::unique_ptr<Verb> make_poke();
[[nodiscard]] std::unique_ptr<Verb> make_patch();
[[nodiscard]] std::unique_ptr<Verb> make_snapshot();
[[nodiscard]] std::unique_ptr<Verb> make_migrate();
[[nodiscard]] std::unique_ptr<Verb> make_regs();
[[nodiscard]] std::unique_ptr<Verb> make_guest();
[[nodiscard]] std::unique_ptr<Verb> make_cpu();
[[nodiscard]] std::unique_ptr<Verb> make_shutdown();
[[nodiscard]] std::unique_ptr<Verb> make_bench();
[[nodiscard]] std::unique_ptr<Verb> make_demo();

} // namespace stopvisor::tools
