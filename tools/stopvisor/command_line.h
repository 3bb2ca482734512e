// SPDX-License-Identifier: Apache-2.0
// Parses the arguments of one verb.
#pragma once

#include <span>
#include <string>

#include "tools/stopvisor/verb.h"

namespace stopvisor::tools {

struct CommandLine {
  bool json = false;
  bool help = false; // --help was asked for: help_text is to be printed and nothing done
  std::string help_text;
};

// Fills what `verb` declares from `arguments` (those after the verb's name). RETURNS: kUsage.
[[nodiscard]] std::expected<CommandLine, vmm::Error> parse_command_line(Verb& verb, std::span<char*> arguments);

} // namespace stopvisor::tools
