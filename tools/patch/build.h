// SPDX-License-Identifier: Apache-2.0
// Makes a manifest from two builds of one file: what differs in their loaded bytes becomes writes.
#pragma once

#include <expected>
#include <span>
#include <string>

#include "tools/patch/manifest.h"

namespace stopvisor::patch {

// How the manifest names addresses.
enum class Naming {
  kSymbols,  // sym:NAME+0x..., of a Linux kernel: wherever KASLR has put it
  kVirtual,  // gva:0x... as linked, in the space of `space`
  kPhysical, // gpa:0x...
};

struct BuildOptions {
  std::string name;
  std::string version;
  Naming naming = Naming::kSymbols;
  std::string space; // for kVirtual: "", "@2", "@kernel", "@cr3=0x...", "@pid=1"
};

struct NamedFile {
  std::string name;
  std::span<const std::byte> bytes;
};

// CONTEXT: any thread, does not block. RETURNS: kRefused where the two are not laid out alike, do not differ,
// differ in more than one patch may write, or a difference has no symbol to be named by; kFailed as
// read_elf_image().
[[nodiscard]] std::expected<Manifest, vmm::Error> build_manifest(const NamedFile& before, const NamedFile& after,
                                                                 const BuildOptions& options);

} // namespace stopvisor::patch
