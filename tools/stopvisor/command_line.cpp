// SPDX-License-Identifier: Apache-2.0
#include "tools/stopvisor/command_line.h"

#include <algorithm>

#include <CLI/CLI.hpp>

#include "vmm/did_you_mean.h"

namespace stopvisor::tools {
namespace {

class CliArguments final : public Arguments {
public:
  explicit CliArguments(CLI::App& app) : app_(app) {}

  void flag(const char* names, bool& to, const char* help) override { app_.add_flag(names, to, help); }
  void option(const char* names, std::optional<std::string>& to, const char* value, const char* help) override {
    app_.add_option(names, to, help)->type_name(value)->expected(1);
  }
  void flag_or_option(const char* names, bool& given, std::optional<std::string>& to, const char* value,
                      const char* help) override {
    const auto take = [&given, &to](const std::vector<std::string>& values) {
      given = true;
      if (!values.empty() && !values.front().empty())
        to = values.front();
    };
    app_.add_option_function<std::vector<std::string>>(names, take, help)->type_name(value)->expected(0, 1);
  }
  void options(const char* names, std::vector<std::string>& to, const char* value, const char* help) override {
    app_.add_option(names, to, help)->type_name(value)->allow_extra_args(false);
  }
  void positional(const char* name, std::string& to, const char* help) override {
    app_.add_option(name, to, help)->required()->type_name("");
  }
  void rest(const char* name, std::vector<std::string>& to, size_t least, const char* help) override {
    CLI::Option* option = app_.add_option(name, to, help)->type_name("");
    option->expected(int(least), CLI::detail::expected_max_vector_size);
    if (least > 0)
      option->required();
  }

private:
  CLI::App& app_;
};

// The library's text, made one line without a final full stop.
std::string one_line(std::string text) {
  std::ranges::replace(text, '\n', ' ');
  while (!text.empty() && (text.back() == ' ' || text.back() == '.'))
    text.pop_back();
  return text;
}

// Why what is left of the arguments was not taken: an unknown option, or a word too many.
std::string unexpected_words(const CLI::App& app, const std::string& see) {
  const std::vector<std::string> left = app.remaining();
  const auto option = std::ranges::find_if(left, [](const std::string& word) { return word.starts_with('-'); });
  if (option == left.end())
    return left.empty() ? "an argument too many" + see : left.front() + ": an argument too many" + see;
  if (app.get_option_no_throw("CMD") != nullptr)
    return *option + ": no such option; one of CMD's goes after --, with CMD";
  std::vector<std::string> known;
  for (const CLI::Option* one : app.get_options())
    for (const std::string& name : one->get_lnames())
      known.push_back("--" + name);
  const std::string meant = vmm::did_you_mean(*option, known);
  return *option + ": no such option" + (meant.empty() ? see : "; did you mean '" + meant + "'?");
}

} // namespace

std::expected<CommandLine, vmm::Error> parse_command_line(Verb& verb, std::span<char*> arguments) {
  CommandLine line;
  CLI::App app(verb.summary(), std::string("stopvisor ") + verb.name());
  app.set_help_flag("-h,--help", "Print this help and exit");
  app.add_flag("--json", line.json, "Print one JSON document to stdout, and nothing else");
  app.footer(verb.details());
  CliArguments declarations(app);
  verb.declare(declarations);
  const std::string see = std::string("; see 'stopvisor ") + verb.name() + " --help'";
  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend()); // as the library takes them
  try {
    app.parse(std::move(reversed));
  } catch (const CLI::CallForHelp&) {
    line.help = true;
    line.help_text = app.help();
  } catch (const CLI::ExtrasError&) {
    return std::unexpected(vmm::Error{verb.name(), "", unexpected_words(app, see), vmm::Status::kUsage});
  } catch (const CLI::ParseError& error) {
    return std::unexpected(vmm::Error{verb.name(), "", one_line(error.what()) + see, vmm::Status::kUsage});
  }
  return line;
}

} // namespace stopvisor::tools
