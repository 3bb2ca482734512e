// SPDX-License-Identifier: Apache-2.0
#include "tools/patch/windows.h"

#include <algorithm>

#include "tools/patch/instructions.h"
#include "tools/patch/kernel_tables.h"
#include "vmm/units.h"

namespace stopvisor::patch {
namespace {

constexpr size_t kLongestInstruction = 15; // Intel SDM volume 2, 2.3.11
constexpr uint64_t kLongModeActive = 1ULL << 10;

bool in_long_mode(const Location& location, Spaces& spaces) {
  const vmm::Registers* const registers = location.paging != nullptr ? location.paging : spaces.vcpu(0);
  return registers == nullptr || (registers->efer & kLongModeActive) != 0;
}

class Finder {
public:
  Finder(Preparation& prepared, Spaces& spaces, const vmm::GuestMemory& memory)
      : prepared_(prepared), spaces_(spaces), memory_(memory) {
    if (prepared.kernel != nullptr && prepared.writes_code())
      tables_ = self_changing_code(*prepared.kernel, memory);
  }

  void find(Site& site) {
    const auto location = spaces_.locate(site.place);
    if (!location) // told under the stop, with all that is wrong
      return;
    site.decoded_at = location->address;
    // Where nothing better is found out, and somebody forces that: what is written itself, its first byte included.
    site.window = Window{location->address, location->address + site.size, true, {}};
    auto code = code_around(site, *location);
    if (!code)
      return;
    const Location begins{code->address, location->paging};
    const auto instructions = decode(code->bytes, code->address, in_long_mode(begins, spaces_));
    if (!instructions)
      refuse(site, std::string(site.function ? "its function" : "it") + " cannot be decoded: no instruction at " +
                       vmm::to_hex(instructions.error()));
    else if (!set_window(site, *instructions, *code))
      refuse(site, "its last instruction is not whole");
    else if (site.function && site.window)
      check_branches(site, *site.window, *instructions);
    if (site.window)
      check_tables(site, *site.window);
  }

private:
  struct Around {
    uint64_t address;
    Bytes bytes;
  };

  void refuse(const Site& site, const std::string& text) {
    prepared_.reasons.add(Check::kBranch, site.name + ": " + text);
  }

  // The function around a site where it is known (as prepared_.functions has it then), else what can be its
  // instructions.
  std::optional<Around> code_around(Site& site, const Location& location) {
    std::optional<FunctionCopy> function = named_function(site, location);
    if (function) {
      const Location begins{function->address, location.paging};
      if (!read_at(begins, function->bytes, memory_)) {
        refuse(site, "its function is not all mapped to memory");
        return std::nullopt;
      }
      Around around{function->address, function->bytes};
      site.function = keep(*std::move(function));
      return around;
    }
    Around around{location.address, Bytes(site.size + kLongestInstruction)};
    while (!read_at(location, around.bytes, memory_)) {
      if (around.bytes.size() == site.size)
        return std::nullopt; // told under the stop
      around.bytes.pop_back();
    }
    // What follows the last instruction that is touched need not be whole.
    while (around.bytes.size() > site.size &&
           !decode(around.bytes, location.address, in_long_mode(location, spaces_)))
      around.bytes.pop_back();
    return around;
  }

  std::optional<FunctionCopy> named_function(const Site& site, const Location& location) {
    if (site.write->function) {
      const auto begins = spaces_.locate(site.write->function->at);
      const uint64_t size = site.write->function->size;
      if (!begins || begins->address > location.address || size < site.size ||
          location.address - begins->address > size - site.size) {
        refuse(site, "does not lie in the function that is given for it");
        return std::nullopt;
      }
      return FunctionCopy{site.write->function->at, begins->address, Bytes(size)};
    }
    if (prepared_.kernel == nullptr || location.paging == nullptr)
      return std::nullopt;
    const auto extent = function_around(prepared_.kernel->symbols(), location.address);
    if (!extent || extent->end - extent->begin > kMaxFunctionBytes || location.address + site.size > extent->end)
      return std::nullopt;
    Place at = site.place;
    at.value -= location.address - extent->begin; // of a symbol the offset: the same distance
    return FunctionCopy{at, extent->begin, Bytes(extent->end - extent->begin)};
  }

  size_t keep(FunctionCopy function) {
    for (size_t i = 0; i < prepared_.functions.size(); ++i) {
      const FunctionCopy& known = prepared_.functions[i];
      if (known.address == function.address && known.bytes.size() == function.bytes.size() &&
          known.at.kind == function.at.kind && known.at.of == function.at.of)
        return i;
    }
    prepared_.functions.push_back(std::move(function));
    return prepared_.functions.size() - 1;
  }

  static bool set_window(Site& site, const std::vector<Instruction>& instructions, const Around& code) {
    const uint64_t begin = site.decoded_at;
    const uint64_t end = begin + site.size;
    Window window;
    for (const Instruction& instruction : instructions)
      if (instruction.end() > begin && instruction.at < end) {
        if (window.starts.empty()) {
          window.begin = instruction.at;
          window.repeats = instruction.repeats;
        }
        window.starts.push_back(instruction.at);
        window.end = instruction.end();
      }
    if (window.end < end || window.starts.empty() || window.begin > begin)
      return false;
    const auto first = code.bytes.begin() + static_cast<ptrdiff_t>(window.begin - code.address);
    site.window_code.assign(first, first + static_cast<ptrdiff_t>(window.size()));
    site.window = std::move(window);
    return true;
  }

  // Branches that lie in the window themselves are written over.
  void check_branches(const Site& site, const Window& window, const std::vector<Instruction>& instructions) {
    for (const Instruction& instruction : instructions)
      if (instruction.target && *instruction.target > window.begin && *instruction.target < window.end &&
          (instruction.at < window.begin || instruction.at >= window.end))
        refuse(site, "the branch at " + vmm::to_hex(instruction.at) + " leads to " +
                         vmm::to_hex(*instruction.target) + ", into the middle of what is changed");
  }

  void check_tables(const Site& site, const Window& window) {
    constexpr uint64_t kLongestPatched = 5; // a jump or a call with 32 bits of distance
    const auto entry =
        std::ranges::lower_bound(tables_, window.begin - kLongestPatched + 1, {}, &SelfChanging::address);
    if (entry != tables_.end() && entry->address < window.end)
      prepared_.reasons.add(Check::kTables, site.name + ": lies over " + entry->kind + " at " +
                                                vmm::to_hex(entry->address) + ", which the guest changes itself");
  }

  Preparation& prepared_;
  Spaces& spaces_;
  const vmm::GuestMemory& memory_;
  std::vector<SelfChanging> tables_;
};

} // namespace

void find_windows(Preparation& prepared, Spaces& spaces, const vmm::GuestMemory& memory) {
  Finder finder(prepared, spaces, memory);
  for (Site& site : prepared.sites)
    if (site.kind == SiteKind::kCode && site.write != nullptr)
      finder.find(site);
}

} // namespace stopvisor::patch
