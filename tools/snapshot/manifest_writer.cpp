// SPDX-License-Identifier: Apache-2.0
// Writes manifests and seals.
#include <nlohmann/json.hpp>

#include "tools/snapshot/manifest.h"
#include "vmm/units.h"

namespace stopvisor::snapshot {
namespace {

using Json = nlohmann::ordered_json;

Json list_of(const Names& names, const char* value_name) {
  Json list = Json::array();
  for (const auto& [name, value] : names)
    list.push_back({{"name", name}, {value_name, value}});
  return list;
}

Json memory_of(const Manifest& manifest) {
  Json regions = Json::array();
  for (const Region& region : manifest.regions)
    regions.push_back({{"gpa", vmm::to_hex(region.gpa)}, {"bytes", region.bytes}, {"offset", region.offset}});
  return {{"encoding", manifest.encoding == Encoding::kRaw ? "raw" : "zstd"},
          {"file_bytes", manifest.file_bytes},
          {"data_pages", manifest.data_pages},
          {"zero_pages", manifest.zero_pages},
          {"parent_pages", manifest.parent_pages},
          {"regions", std::move(regions)}};
}

Json file_of(const std::string& name, const FileSum& sum, bool sealed) {
  Json file = {{"name", name}, {"bytes", sum.bytes}, {"xxh3", hex_text(sum.xxh3)}};
  if (sealed)
    file["mac"] = hex_text(sum.mac);
  return file;
}

Json disks_of(const Manifest& manifest) {
  Json disks = Json::array();
  for (const Disk& disk : manifest.disks) {
    Json one = {{"path", disk.path},
                {"read_only", disk.read_only},
                {"bytes", disk.bytes},
                {"changed_unix_ns", disk.changed_unix_ns}};
    if (disk.index)
      one["index"] = file_of(disk_index_name(disks.size()), *disk.index, manifest.sealed);
    disks.push_back(std::move(one));
  }
  return disks;
}

} // namespace

std::string disk_image_name(size_t number) {
  return "disk-" + std::to_string(number) + ".img";
}

std::string disk_index_name(size_t number) {
  return "disk-" + std::to_string(number) + ".idx";
}

const char* file_name_of(Encoding encoding) noexcept {
  return encoding == Encoding::kRaw ? kRawName : kZstdName;
}

std::string write_manifest(const Manifest& manifest) {
  Json document = {{"format", manifest.disks.empty() ? kFormat : kFormatWithDisks},
                   {"id", hex_text(manifest.id)},
                   {"vm", manifest.vm},
                   {"created_unix_ns", manifest.created_unix_ns},
                   {"kind", manifest.parent ? "incremental" : "full"}};
  if (manifest.parent)
    document["parent"] = {{"id", hex_text(manifest.parent->id)},
                          {"digest", hex_text(manifest.parent->digest)},
                          {"place", manifest.parent->place}};
  document["host"] = list_of(manifest.host, "value");
  document["patches"] = list_of(manifest.patches, "version");
  document["memory"] = memory_of(manifest);
  document["files"] = Json::array({file_of(kMachineName, manifest.machine, manifest.sealed),
                                   file_of(kStateName, manifest.state, manifest.sealed),
                                   file_of(kIndexName, manifest.index, manifest.sealed)});
  if (!manifest.disks.empty())
    document["disks"] = disks_of(manifest);
  document["sealed"] = manifest.sealed;
  // A name with bytes that are no UTF-8 must not end the process.
  return document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string write_seal(const Seal& seal) {
  std::string text = "stopvisor-seal 1\ndigest " + hex_text(seal.digest) + "\n";
  if (seal.mac)
    text += "mac " + hex_text(*seal.mac) + "\n";
  return text;
}

} // namespace stopvisor::snapshot
