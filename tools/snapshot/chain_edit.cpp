// SPDX-License-Identifier: Apache-2.0
#include "tools/snapshot/chain_edit.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <set>
#include <utility>

#include "tools/snapshot/incremental.h"

namespace stopvisor::snapshot {
namespace {

FileSystem& files_of(const EditOptions& options) {
  return options.write.files != nullptr ? *options.write.files : FileSystem::real();
}

Contents contents_of(const Snapshot& snapshot) {
  const Manifest& manifest = snapshot.manifest();
  Contents contents{manifest.vm,      manifest.created_unix_ns, manifest.host,
                    manifest.patches, snapshot.machine(),       snapshot.state()};
  for (size_t number = 0; number < manifest.disks.size(); ++number) {
    DiskSource disk{.disk = manifest.disks[number], .check = {}};
    if (std::exchange(disk.disk.index, std::nullopt)) {
      disk.image = snapshot.disk_image(number);
      disk.check = [&snapshot, number](uint64_t extent, ByteSpan bytes) {
        return snapshot.check_disk(number, extent, bytes);
      };
    }
    contents.disks.push_back(std::move(disk));
  }
  return contents;
}

std::expected<Created, vmm::Error> merge_chain(const Chain& chain, const std::string& to, CreateOptions write) {
  write.parent.reset();
  const auto memory = chain.source();
  return create(to, contents_of(chain.newest()), *memory, write);
}

std::string folder_of(const std::string& directory) {
  std::filesystem::path path = std::filesystem::path(directory).lexically_normal();
  if (!path.has_filename())
    path = path.parent_path();
  return path.has_parent_path() ? path.parent_path().string() : ".";
}

// The ids that snapshots in `folder` name as their parents. Seals are not checked with a key: whoever wrote a false
// one only keeps something from being removed.
// RETURNS: nothing where that cannot be told, as one of them cannot be read: nobody knows then what it stands on.
std::optional<std::set<Id>> parents_in(FileSystem& files, const std::string& folder) {
  std::set<Id> parents;
  const auto names = files.list(folder);
  if (!names)
    return std::nullopt;
  for (const std::string& name : *names) {
    std::error_code unknown;
    const bool is_snapshot = std::filesystem::exists(folder + "/" + name + "/" + kManifestName, unknown);
    if (name.ends_with(kPartialSuffix) || (!is_snapshot && !unknown))
      continue;
    const auto snapshot = Snapshot::open(folder + "/" + name, {.operation = "snapshot chain", .unchecked = true});
    if (!snapshot)
      return std::nullopt;
    if (const auto& parent = snapshot->manifest().parent)
      parents.insert(parent->id);
  }
  return parents;
}

// Whether a snapshot in the folder of this one stands on it, or may.
bool is_needed(FileSystem& files, const Snapshot& snapshot) {
  const auto parents = parents_in(files, folder_of(snapshot.directory()));
  return !parents || parents->contains(snapshot.manifest().id);
}

// A file there that is not the snapshot's: somebody put it there, and wants it.
// RETURNS: its name; "" where there is none, or "?" where that cannot be told.
std::string foreign_file(FileSystem& files, const Snapshot& snapshot) {
  std::set<std::string> own{kManifestName, kSealName, kMachineName, kStateName, kIndexName, kRawName, kZstdName};
  for (size_t number = 0; number < snapshot.manifest().disks.size(); ++number) {
    own.insert(disk_image_name(number));
    own.insert(disk_index_name(number));
  }
  const auto names = files.list(snapshot.directory());
  if (!names)
    return "?";
  const auto foreign = std::ranges::find_if(*names, [&](const std::string& name) { return !own.contains(name); });
  return foreign == names->end() ? "" : *foreign;
}

// Under a name that no reader takes first, so that a half removed one is not found.
int remove_snapshot(FileSystem& files, const std::string& directory) {
  const std::string gone = folder_of(directory) + "/." + hex_text(random_id()) + kPartialSuffix;
  if (const int error = files.rename(directory, gone))
    return error;
  return remove_tree(files, gone);
}

} // namespace

std::expected<Created, vmm::Error> merge(const std::string& directory, const std::string& to,
                                         const EditOptions& options) {
  const auto chain = Chain::open(directory, options.open);
  if (!chain)
    return std::unexpected(chain.error());
  return merge_chain(*chain, to, options.write);
}

std::expected<Created, vmm::Error> rebase(const std::string& directory, const std::string& base,
                                          const std::string& to, const EditOptions& options) {
  const auto chain = Chain::open(directory, options.open);
  if (!chain)
    return std::unexpected(chain.error());
  const auto below =
      Base::open(options.open.operation, base, options.open.key, chain->newest().directory(), chain->regions());
  if (!below)
    return std::unexpected(below.error());
  CreateOptions write = options.write;
  write.parent = below->link();
  const auto all = chain->source();
  return create(to, contents_of(chain->newest()), *difference(below->chain(), *all), write);
}

std::expected<Pruned, vmm::Error> prune(const std::string& directory, const EditOptions& options) {
  // By a link's name the folder would be the link's, and who stands on the snapshot is beside the snapshot.
  std::error_code lost;
  const bool by_link = std::filesystem::is_symlink(directory, lost);
  const std::string real = by_link ? std::filesystem::canonical(directory, lost).string() : directory;
  const auto chain = Chain::open(lost ? directory : real, options.open);
  if (!chain)
    return std::unexpected(chain.error());
  FileSystem& files = files_of(options);
  if (is_needed(files, chain->newest()))
    return std::unexpected(chain->newest().error(
        "", "is the parent of another snapshot beside it, which would lose it, or one there cannot be read"));
  Pruned pruned;
  if (chain->members().size() == 1)
    return pruned;
  if (const std::string foreign = foreign_file(files, chain->newest()); !foreign.empty())
    return std::unexpected(
        chain->newest().error(foreign, "is no file of the snapshot, which is to be written anew"));
  CreateOptions write = options.write;
  write.replace = true;
  if (auto made = merge_chain(*chain, chain->newest().directory(), write); !made)
    return std::unexpected(std::move(made.error()));
  // From the newest on: each is removed before the one it stands on.
  bool needed = false;
  for (const Snapshot& member : std::span(chain->members()).subspan(1)) {
    const std::string& ancestor = member.directory();
    needed = needed || is_needed(files, member) || !foreign_file(files, member).empty() ||
             std::filesystem::is_symlink(ancestor, lost); // who put the link there has plans for what is behind it
    if (needed || remove_snapshot(files, ancestor) != 0)
      pruned.kept.push_back(ancestor);
    else
      pruned.removed.push_back(ancestor);
  }
  return pruned;
}

} // namespace stopvisor::snapshot
