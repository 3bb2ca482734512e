// SPDX-License-Identifier: Apache-2.0
#include "tools/patch/vcpu_checks.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "vmm/page_walk.h"
#include "vmm/units.h"

namespace stopvisor::patch {
namespace {

// Stacks of Linux on x86-64 have 16 KiB and begin at a multiple of it (arch/x86/include/asm/page_64_types.h). Of
// others this much is looked at.
constexpr uint64_t kStackBytes = 16 << 10;
constexpr int kMostStretches = 4; // an interrupt's stack, an exception's, and what they left
constexpr uint64_t kLongModeActive = 1ULL << 10;

// What the CPU pushes for an interrupt in 64-bit mode (AMD APM volume 2, 8.9.3).
constexpr size_t kFrameWords = 5;
enum FrameWord { kRip, kCs, kFlags, kRsp, kSs };
constexpr uint64_t kFlagsAlwaysSet = 1 << 1;
constexpr uint64_t kFlagsNeverSet = ~0x3f'7fd7ULL; // reserved bits, and above ID

uint64_t linear_rip(const vmm::Registers& registers) {
  return registers.cs.long_mode ? registers.rip : (registers.cs.base + registers.rip) & UINT32_MAX;
}

bool looks_like_frame(std::span<const uint64_t> words) {
  const auto is_selector = [](uint64_t word) { return word > 3 && word < 0x10000; };
  return is_selector(words[kCs]) && (words[kSs] < 0x10000) && (words[kFlags] & kFlagsAlwaysSet) != 0 &&
         (words[kFlags] & kFlagsNeverSet) == 0 && (words[kSs] == 0 || (words[kCs] & 3) == (words[kSs] & 3));
}

// Whether guest physical `gpa` is a place in the window that a vCPU must not go on from.
bool inside(const Site& site, uint64_t gpa) {
  uint64_t done = 0;
  for (const Piece& piece : site.window_pieces.list) {
    if (gpa - piece.gpa.value < piece.host.size())
      return done + (gpa - piece.gpa.value) > 0 || (site.window && site.window->repeats);
    done += piece.host.size();
  }
  return false;
}

} // namespace

VcpuChecks::VcpuChecks() : words_(kStackBytes / sizeof(uint64_t)) {}

void VcpuChecks::run(Spaces& spaces, const Preparation& prepared, const Guest& guest, bool stacks,
                     Reasons& reasons) {
  prepared_ = &prepared;
  guest_ = &guest;
  memory_ = &guest.memory();
  reasons_ = &reasons;
  if (stacks)
    for (const Site& site : prepared.sites)
      if (site.kind == SiteKind::kCode && site.place.kind == Place::Kind::kPhysical)
        reasons.add(Check::kStacks, site.name + ": no stack can be searched for a physical address");
  for (uint32_t cpu = 0; cpu < spaces.vcpus(); ++cpu) {
    const vmm::Registers* const registers = spaces.vcpu(cpu);
    if (registers == nullptr) {
      reasons.add(Check::kRip, "vCPU " + std::to_string(cpu) + " cannot be looked at");
      continue;
    }
    check_point(Check::kRip, " is at ", cpu, linear_rip(*registers), *registers);
    if ((registers->efer & kLongModeActive) != 0 && registers->cs.long_mode)
      search_stacks(cpu, *registers, stacks);
  }
}

void VcpuChecks::check_point(Check check, const char* what, uint32_t cpu, uint64_t at,
                             const vmm::Registers& registers) {
  const vmm::Block block = vmm::block_at(vmm::Gva{at}, registers, *memory_);
  if (!block.page)
    return;
  for (const Site& site : prepared_->sites)
    if (site.window && inside(site, block.page->gpa.value) && !guest_->waits_to_start(cpu))
      reasons_->add(check, site.name + ": vCPU " + std::to_string(cpu) + what + "gva:" + vmm::to_hex(at) +
                               ", inside its window of " + std::to_string(site.window->size()) + " bytes");
}

// From the stack pointer to the stack's end, and on to the stacks it leads to: an exception's stack has the
// interrupted one's pointer in its frame, Linux' interrupt stack in its last word.
void VcpuChecks::search_stacks(uint32_t cpu, const vmm::Registers& registers, bool stacks) {
  std::array<Stretch, kMostStretches> seen;
  std::array<uint64_t, kMostStretches> todo{registers.general[4]};
  size_t known = 1;
  const auto follow = [&](uint64_t pointer, size_t done) {
    const bool fresh =
        std::ranges::none_of(std::span(seen).first(done), [&](const Stretch& one) { return one.has(pointer); });
    const bool waiting = std::ranges::any_of(
        std::span(todo).first(known), [&](uint64_t one) { return one / kStackBytes == pointer / kStackBytes; });
    if (pointer % sizeof(uint64_t) == 0 && pointer != 0 && fresh && !waiting && known < todo.size())
      todo[known++] = pointer;
  };
  for (size_t next = 0; next < known; ++next) {
    seen[next] = read_stretch(registers, todo[next]);
    const std::span<const uint64_t> words(words_.data(), seen[next].words);
    for (size_t at = 0; at < words.size(); ++at) {
      if (stacks)
        check_word(cpu, words[at]);
      if (at + kFrameWords > words.size())
        continue;
      const auto frame = words.subspan(at, kFrameWords);
      if (!looks_like_frame(frame))
        continue;
      check_frame(cpu, registers, frame);
      if (registers.cpl() == 0 && (frame[kCs] & 3) == 0)
        follow(frame[kRsp], next + 1);
    }
    if (registers.cpl() == 0 && !words.empty() && vmm::is_kernel_address(words.back()))
      follow(words.back(), next + 1);
  }
}

VcpuChecks::Stretch VcpuChecks::read_stretch(const vmm::Registers& registers, uint64_t from) {
  from = (from + sizeof(uint64_t) - 1) & ~(sizeof(uint64_t) - 1);
  const uint64_t wanted = kStackBytes - from % kStackBytes;
  auto to = std::as_writable_bytes(std::span(words_));
  uint64_t done = 0;
  while (done < wanted) {
    const uint64_t at = from + done;
    const vmm::Block block = vmm::block_at(vmm::Gva{at}, registers, *memory_);
    const uint64_t step = std::min(wanted - done, vmm::kPageBytes - at % vmm::kPageBytes);
    if (!block.page || !memory_->read(block.page->gpa, to.subspan(done, step)))
      break;
    done += step;
  }
  return {from, done / sizeof(uint64_t)};
}

void VcpuChecks::check_frame(uint32_t cpu, const vmm::Registers& registers, std::span<const uint64_t> words) {
  check_point(Check::kFrames, " will return from an interrupt to ", cpu, words[kRip], registers);
}

void VcpuChecks::check_word(uint32_t cpu, uint64_t word) {
  for (const Site& site : prepared_->sites) {
    if (!site.window || !site.location || site.location->paging == nullptr)
      continue;
    uint64_t begin = site.window->begin;
    uint64_t end = site.window->end;
    if (site.function) {
      begin = prepared_->functions[*site.function].address;
      end = prepared_->functions[*site.function].end();
    }
    if (word >= begin && word < end)
      reasons_->add(Check::kStacks, site.name + ": the stack of vCPU " + std::to_string(cpu) + " has gva:" +
                                        vmm::to_hex(word) + " on it, inside the function that is changed");
  }
}

} // namespace stopvisor::patch
