// SPDX-License-Identifier: Apache-2.0
#include "tools/patch/build.h"

#include <elf.h>

#include <algorithm>

#include "tools/patch/elf_image.h"
#include "vmm/units.h"

namespace stopvisor::patch {
namespace {

using vmm::Error;
using vmm::Status;

constexpr size_t kJoinedGap = 4; // differences this near to each other become one write

struct Run {
  uint64_t begin = 0, end = 0; // in the segment's bytes
};

class Builder {
public:
  Builder(const NamedFile& before, const NamedFile& after, const BuildOptions& options)
      : before_name_(before.name), after_name_(after.name), options_(options) {}

  std::expected<Manifest, Error> build(const ElfImage& before, const ElfImage& after) {
    if (auto alike = check_layout(before, after); !alike)
      return std::unexpected(alike.error());
    manifest_.name = options_.name;
    manifest_.version = options_.version;
    manifest_.description = "the differences of two builds";
    if (!before.build_id.empty() && options_.naming == Naming::kSymbols)
      manifest_.target = {Target::Kind::kBuildId, before.build_id, {}};
    for (size_t i = 0; i < before.segments.size(); ++i)
      if (auto taken = take_segment(before, after.segments[i].bytes, i); !taken)
        return std::unexpected(taken.error());
    if (manifest_.writes.empty())
      return refuse("what is loaded of the two files does not differ");
    return std::move(manifest_);
  }

private:
  using Taken = std::expected<void, Error>;

  [[nodiscard]] std::unexpected<Error> refuse(std::string reason) const {
    return std::unexpected(
        Error{"patch build", before_name_ + " and " + after_name_, std::move(reason), Status::kRefused});
  }

  [[nodiscard]] Taken check_layout(const ElfImage& before, const ElfImage& after) const {
    if (before.machine != after.machine || before.type != after.type || before.wide != after.wide)
      return refuse("are files of different kinds");
    if (before.segments.size() != after.segments.size())
      return refuse("have " + std::to_string(before.segments.size()) + " and " +
                    std::to_string(after.segments.size()) + " segments: not two builds of the same layout");
    for (size_t i = 0; i < before.segments.size(); ++i) {
      const ElfSegment& one = before.segments[i];
      const ElfSegment& other = after.segments[i];
      if (one.virtual_address != other.virtual_address || one.physical_address != other.physical_address ||
          one.memory_bytes != other.memory_bytes || one.bytes.size() != other.bytes.size() ||
          one.flags != other.flags)
        return refuse("segment " + std::to_string(i) +
                      " is at another address, of another size or of other rights: "
                      "not two builds of the same layout");
    }
    return {};
  }

  Taken take_segment(const ElfImage& image, std::span<const std::byte> after, size_t index) {
    const ElfSegment& segment = image.segments[index];
    for (size_t at = 0; at < after.size();) {
      if (segment.bytes[at] == after[at] || is_note(image, segment.virtual_address + at)) {
        ++at;
        continue;
      }
      Run run{at, at + 1};
      for (size_t next = run.end;
           next < after.size() && next - run.end < kJoinedGap && next - run.begin < kMaxSiteBytes &&
           !is_note(image, segment.virtual_address + next);
           ++next)
        if (segment.bytes[next] != after[next])
          run.end = next + 1;
      if (auto taken = take_run(image, segment, after, run); !taken)
        return taken;
      at = run.end;
    }
    return {};
  }

  // Two builds have two build IDs, which nobody wants to write.
  static bool is_note(const ElfImage& image, uint64_t address) {
    return std::ranges::any_of(image.notes,
                               [&](const auto& note) { return address >= note.first && address < note.second; });
  }

  Taken take_run(const ElfImage& image, const ElfSegment& segment, std::span<const std::byte> after,
                 const Run& run) {
    const uint64_t address = segment.virtual_address + run.begin;
    if (manifest_.writes.size() == kMaxWrites || total_ + (run.end - run.begin) > kMaxBytes)
      return refuse("differ in more places than one patch may write (" + std::to_string(kMaxWrites) + " writes, " +
                    std::to_string(kMaxBytes) + " bytes)");
    total_ += run.end - run.begin;
    Write write;
    write.kind = (segment.flags & PF_X) != 0 ? SiteKind::kCode : SiteKind::kData;
    const auto length = static_cast<ptrdiff_t>(run.end - run.begin);
    const auto at = static_cast<ptrdiff_t>(run.begin);
    write.expect.assign(segment.bytes.begin() + at, segment.bytes.begin() + at + length);
    write.operation.bytes.assign(after.begin() + at, after.begin() + at + length);
    const ElfFunction* const symbol = image.symbol_at(address);
    const auto place = place_of(segment, address, symbol);
    if (!place)
      return std::unexpected(place.error());
    write.at = *place;
    const bool inside =
        symbol != nullptr && symbol->code && address + write.size() <= symbol->address + symbol->size;
    if (write.kind == SiteKind::kCode && inside && symbol->size <= kMaxFunctionBytes) {
      FunctionExtent function{*place, symbol->size};
      function.at.value -= address - symbol->address;
      write.function = function;
    }
    if (symbol != nullptr && options_.naming != Naming::kSymbols)
      write.note = (symbol->name + "+" + vmm::to_hex(address - symbol->address)).substr(0, 256);
    manifest_.writes.push_back(std::move(write));
    return {};
  }

  std::expected<Place, Error> place_of(const ElfSegment& segment, uint64_t address,
                                       const ElfFunction* symbol) const {
    switch (options_.naming) {
    case Naming::kSymbols:
      if (symbol == nullptr)
        return refuse("the difference at " + vmm::to_hex(address) +
                      " has no symbol of its own to be named by; give --at");
      return Place{Place::Kind::kSymbol, address - symbol->address, 0, symbol->name};
    case Naming::kPhysical:
      return Place{Place::Kind::kPhysical, segment.physical_address + (address - segment.virtual_address), 0, {}};
    case Naming::kVirtual:
      break;
    }
    auto place = parse_place("gva:" + vmm::to_hex(address) + options_.space);
    if (!place)
      return std::unexpected(Error{"patch build", "--at", place.error(), Status::kUsage});
    return *place;
  }

  std::string before_name_, after_name_;
  const BuildOptions& options_;
  Manifest manifest_;
  size_t total_ = 0;
};

} // namespace

std::expected<Manifest, Error> build_manifest(const NamedFile& before, const NamedFile& after,
                                              const BuildOptions& options) {
  if (!is_patch_name(options.name))
    return std::unexpected(Error{"patch build", options.name.substr(0, 60),
                                 "a patch's name must be letters, digits, and . _ - after the first, 64 at most",
                                 Status::kUsage});
  const auto one = read_elf_image(before.bytes, before.name);
  if (!one)
    return std::unexpected(one.error());
  const auto other = read_elf_image(after.bytes, after.name);
  if (!other)
    return std::unexpected(other.error());
  return Builder(before, after, options).build(*one, *other);
}

} // namespace stopvisor::patch
