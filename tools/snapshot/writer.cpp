// SPDX-License-Identifier: Apache-2.0
#include "tools/snapshot/writer.h"

#include <chrono>
#include <filesystem>
#include <utility>

namespace stopvisor::snapshot {

// One snapshot that is being made.
class Creation::Writer {
public:
  Writer(std::string directory, const CreateOptions& options, Publication publication)
      : directory_(std::move(directory)), options_(options), publication_(std::move(publication)) {
    made_.manifest.id = random_id();
  }

  [[nodiscard]] std::expected<void, vmm::Error> copy(const DiskSource& source) {
    std::optional<CopiedDisk> copied;
    if (source.image.fd >= 0) {
      const std::string name = disk_image_name(copies_.size());
      auto file = publication_.create(name);
      if (!file)
        return std::unexpected(std::move(file.error()));
      const ImageFile to{file->get(), directory_ + "/" + name};
      if (auto done =
              copy_image(publication_.files(), how(), source.image, to, source.disk.bytes, options_.progress);
          !done)
        return done;
      copied = CopiedDisk{*std::move(file), source.check};
    }
    made_.manifest.disks.push_back(source.disk);
    copies_.push_back(std::move(copied));
    return {};
  }

  [[nodiscard]] std::expected<Created, vmm::Error> write(const Contents& contents, MemorySource& memory) {
    describe(contents);
    const auto state = write_state(options_.operation, directory_, contents.state);
    if (!state)
      return std::unexpected(state.error());
    const auto index = write_memory(publication_, memory, how(), memory_options(), made_.manifest);
    if (!index)
      return std::unexpected(index.error());
    Manifest& manifest = made_.manifest;
    auto done = add(kMachineName, Label::kMachine, contents.machine, manifest.machine);
    if (done)
      done = add(kStateName, Label::kState, *state, manifest.state);
    if (done)
      done = add(kIndexName, Label::kIndex, write_index(*index), manifest.index);
    for (size_t disk = 0; done && disk < copies_.size(); ++disk)
      if (const auto& copy = copies_[disk])
        done = vouch(disk, *copy);
    if (done)
      done = seal();
    if (done && options_.stop.stop_requested())
      done = std::unexpected(vmm::Error{std::string(options_.operation), directory_, "was cancelled"});
    if (done && options_.confirm)
      done = options_.confirm();
    if (done)
      done = publication_.publish();
    if (!done)
      return std::unexpected(std::move(done.error()));
    return std::move(made_);
  }

private:
  struct CopiedDisk {
    vmm::UniqueFd file;
    VisitExtent check;
  };

  [[nodiscard]] Work how() const {
    return {options_.operation, directory_, options_.threads, options_.stop, options_.go_on};
  }

  // Reads the copy back: what the index is of is what is there.
  [[nodiscard]] std::expected<void, vmm::Error> vouch(size_t disk, const CopiedDisk& copy) {
    Disk& about = made_.manifest.disks[disk];
    const std::string name = disk_image_name(disk);
    const ImageFile image{copy.file.get(), directory_ + "/" + name};
    if (copy.check)
      if (auto good = for_extents(how(), image, about.bytes, copy.check); !good)
        return good;
    const auto index =
        index_image(how(), image, about.bytes, made_.manifest.id, disk, options_.key, options_.progress);
    if (!index)
      return std::unexpected(index.error());
    if (auto synced = publication_.sync(copy.file.get(), name); !synced)
      return synced;
    return add(disk_index_name(disk), Label::kDiskIndex, write_disk_index(*index), about.index.emplace());
  }

  void describe(const Contents& contents) {
    using std::chrono::system_clock;
    Manifest& manifest = made_.manifest;
    manifest.vm = contents.vm;
    manifest.created_unix_ns = contents.created_unix_ns;
    if (manifest.created_unix_ns == 0)
      manifest.created_unix_ns = static_cast<uint64_t>(
          std::chrono::duration_cast<std::chrono::nanoseconds>(system_clock::now().time_since_epoch()).count());
    manifest.host = contents.host;
    manifest.patches = contents.patches;
    manifest.sealed = options_.key != nullptr;
    if (options_.parent) {
      std::error_code ignored; // of a working directory that is gone: the place is a hint
      const auto from = std::filesystem::absolute(directory_, ignored).lexically_normal();
      const auto to = std::filesystem::absolute(options_.parent->directory, ignored).lexically_normal();
      const std::string place = to.lexically_relative(from).string();
      manifest.parent = {options_.parent->id, options_.parent->digest,
                         place.empty() ? options_.parent->directory : place};
    }
  }

  [[nodiscard]] MemoryOptions memory_options() const {
    return {options_.encoding, options_.level, options_.key, options_.progress};
  }

  [[nodiscard]] std::expected<void, vmm::Error> add(const std::string& name, Label label, ByteSpan content,
                                                    FileSum& sum) {
    sum.bytes = content.size();
    sum.xxh3 = xxh3_of(content);
    if (options_.key != nullptr)
      sum.mac = options_.key->mac(label, made_.manifest.id, content);
    return publication_.add(name, content);
  }

  // The manifest is read back before anybody relies on it: what a reader would refuse is never published.
  [[nodiscard]] std::expected<void, vmm::Error> seal() {
    const std::string text = write_manifest(made_.manifest);
    if (text.size() > kMaxManifestBytes)
      return std::unexpected(
          vmm::Error{std::string(options_.operation), directory_, "too many facts for a manifest"});
    if (auto read = read_manifest(options_.operation, directory_, text); !read)
      return std::unexpected(std::move(read.error()));
    made_.digest = digest_of(bytes_of(text));
    Seal seal{.digest = made_.digest, .mac = std::nullopt};
    if (options_.key != nullptr)
      seal.mac = options_.key->mac(Label::kSeal, Id{}, bytes_of(text));
    auto done = publication_.add(kManifestName, bytes_of(text));
    if (done)
      done = publication_.add(kSealName, bytes_of(write_seal(seal)));
    return done;
  }

  const std::string directory_;
  const CreateOptions& options_;
  Publication publication_;
  std::vector<std::optional<CopiedDisk>> copies_; // by the disks' numbers
  Created made_;
};

Creation::Creation(std::unique_ptr<Writer> writer) : writer_(std::move(writer)) {}
Creation::Creation(Creation&&) noexcept = default;
Creation::~Creation() = default;

std::expected<Creation, vmm::Error> Creation::begin(const std::string& directory, const CreateOptions& options) {
  using Existing = Publication::Existing;
  FileSystem& files = options.files != nullptr ? *options.files : FileSystem::real();
  auto publication = Publication::begin(options.operation, directory,
                                        options.replace ? Existing::kReplace : Existing::kRefuse, files);
  if (!publication)
    return std::unexpected(std::move(publication.error()));
  return Creation(std::make_unique<Writer>(directory, options, *std::move(publication)));
}

std::expected<void, vmm::Error> Creation::add_disks(const std::vector<DiskSource>& disks) {
  for (const DiskSource& disk : disks)
    if (auto copied = writer_->copy(disk); !copied)
      return copied;
  return {};
}

std::expected<Created, vmm::Error> Creation::finish(const Contents& contents, MemorySource& memory) {
  return writer_->write(contents, memory);
}

std::expected<Created, vmm::Error> create(const std::string& directory, const Contents& contents,
                                          MemorySource& memory, const CreateOptions& options) {
  if (const std::string fault = fault_of(memory.regions()); !fault.empty())
    return std::unexpected(vmm::Error{std::string(options.operation), directory, "regions of memory " + fault});
  auto creation = Creation::begin(directory, options);
  if (!creation)
    return std::unexpected(std::move(creation.error()));
  if (auto added = creation->add_disks(contents.disks); !added)
    return std::unexpected(std::move(added.error()));
  return creation->finish(contents, memory);
}

} // namespace stopvisor::snapshot
