// SPDX-License-Identifier: Apache-2.0
// Reads manifests and seals: every field is checked, and the first fault is told with its place.
#include <limits>

#include <nlohmann/json.hpp>

#include "tools/json/json_object.h"
#include "tools/snapshot/manifest.h"

namespace stopvisor::snapshot {
namespace {

constexpr uint64_t kAnyNumber = std::numeric_limits<uint64_t>::max();

std::unexpected<vmm::Error> refuse(std::string_view operation, std::string_view object, std::string reason) {
  return std::unexpected(
      vmm::Error{std::string(operation), std::string(object), std::move(reason), vmm::Status::kRefused});
}

void read_hex(JsonObject& object, const char* name, std::span<std::byte> to) {
  if (!from_hex(object.text(name, to.size() * 2), to))
    object.wrong(name, "must be " + std::to_string(to.size() * 2) + " hexadecimal digits");
}

Names read_names(JsonObject& object, const char* list, size_t most, const char* value_name, size_t longest) {
  Names names;
  for (JsonObject& one : object.optional_objects(list, most)) {
    std::string name = one.text("name", 64);
    std::string value = one.optional_text(value_name, longest);
    one.finish();
    names.emplace_back(std::move(name), std::move(value));
  }
  return names;
}

std::optional<ParentLink> read_parent(JsonObject& document) {
  const std::string kind = document.text("kind", 16);
  if (kind != "full" && kind != "incremental")
    document.wrong("kind", "must be full or incremental");
  auto fields = document.optional_object("parent");
  if (fields.has_value() != (kind == "incremental"))
    document.wrong("parent", "must be there in an incremental snapshot, and in no other");
  if (!fields)
    return std::nullopt;
  ParentLink parent;
  read_hex(*fields, "id", parent.id);
  read_hex(*fields, "digest", parent.digest);
  parent.place = fields->text("place", 4095);
  fields->finish();
  return parent;
}

void read_memory(JsonObject& document, Manifest& manifest) {
  auto memory = document.optional_object("memory");
  if (!memory)
    return document.wrong("memory", "is missing");
  const std::string encoding = memory->text("encoding", 16);
  if (encoding != "raw" && encoding != "zstd")
    memory->wrong("encoding", "must be raw or zstd");
  manifest.encoding = encoding == "zstd" ? Encoding::kZstd : Encoding::kRaw;
  for (JsonObject& one : memory->optional_objects("regions", kMaxRegions)) {
    Region region;
    region.gpa = one.number("gpa", 0, kAnyNumber);
    region.bytes = one.number("bytes", kPageBytes, kMaxSpan);
    region.offset = one.number("offset", 0, kMaxSpan);
    one.finish();
    manifest.regions.push_back(region);
  }
  if (const std::string fault = fault_of(manifest.regions); !fault.empty())
    memory->wrong("regions", fault);
  uint64_t pages = 0;
  for (const Region& region : manifest.regions)
    pages += region.bytes / kPageBytes;
  manifest.file_bytes = memory->number("file_bytes", 0, 2 * kMaxSpan);
  manifest.data_pages = memory->number("data_pages", 0, pages);
  manifest.zero_pages = memory->number("zero_pages", 0, pages);
  manifest.parent_pages = memory->number("parent_pages", 0, manifest.parent ? pages : 0);
  if (manifest.data_pages + manifest.zero_pages + manifest.parent_pages != pages)
    memory->wrong("data_pages", "and zero_pages and parent_pages are not the pages of the regions");
  if (manifest.encoding == Encoding::kRaw && manifest.file_bytes != span_of(manifest.regions))
    memory->wrong("file_bytes", "is not the span of the regions");
  memory->finish();
}

FileSum read_file_sum(JsonObject& file, const std::string& name, uint64_t most, bool sealed) {
  FileSum sum;
  if (file.text("name", 64) != name)
    file.wrong("name", "must be " + name);
  sum.bytes = file.number("bytes", 0, most);
  std::array<std::byte, 8> digits{};
  read_hex(file, "xxh3", digits);
  for (const std::byte byte : digits)
    sum.xxh3 = sum.xxh3 << 8 | std::to_integer<uint64_t>(byte);
  if (sealed)
    read_hex(file, "mac", sum.mac);
  file.finish();
  return sum;
}

void read_files(JsonObject& document, Manifest& manifest) {
  auto files = document.optional_objects("files", 3);
  if (files.size() != 3)
    return document.wrong("files", "must be three");
  manifest.machine = read_file_sum(files[0], kMachineName, kMaxMachineBytes, manifest.sealed);
  manifest.state = read_file_sum(files[1], kStateName, kMaxStateBytes, manifest.sealed);
  manifest.index = read_file_sum(files[2], kIndexName, kMaxIndexBytes, manifest.sealed);
  if (manifest.index.bytes != sizeof(IndexHeader) + extents_of(span_of(manifest.regions)) * sizeof(Extent))
    document.wrong("files", "have an index that is not as long as the memory wants it");
}

void read_disks(JsonObject& document, Manifest& manifest) {
  auto disks = document.optional_objects("disks", kMaxDisks);
  if (disks.empty())
    return document.wrong("disks", "must be there in format 2, and not be empty");
  for (JsonObject& one : disks) {
    Disk disk;
    disk.path = one.text("path", 4095);
    disk.read_only = one.flag("read_only");
    disk.bytes = one.number("bytes", 1, kMaxDiskBytes);
    disk.changed_unix_ns = one.number("changed_unix_ns", 0, kAnyNumber);
    if (auto index = one.optional_object("index")) {
      const std::string name = disk_index_name(manifest.disks.size());
      disk.index = read_file_sum(*index, name, kMaxDiskIndexBytes, manifest.sealed);
      if (disk.index->bytes != sizeof(DiskIndexHeader) + extents_of(disk.bytes) * sizeof(DiskExtent))
        one.wrong("index", "is not as long as the disk wants it");
    }
    one.finish();
    manifest.disks.push_back(std::move(disk));
  }
}

} // namespace

std::expected<Manifest, vmm::Error> read_manifest(std::string_view operation, std::string_view object,
                                                  std::string_view text) {
  const auto parsed = parse_strictly(text);
  if (!parsed)
    return refuse(operation, object,
                  parsed.error().where + (parsed.error().where.empty() ? "" : " ") + parsed.error().reason);
  std::optional<JsonFault> fault;
  JsonObject document(*parsed, "", fault);
  Manifest manifest;
  const uint64_t format = document.number("format", 0, kAnyNumber);
  if (format != kFormat && format != kFormatWithDisks)
    document.wrong("format", "is none that this program knows: " + std::to_string(kFormat) + " and " +
                                 std::to_string(kFormatWithDisks));
  read_hex(document, "id", manifest.id);
  if (manifest.id == Id{})
    document.wrong("id", "must not be zero");
  manifest.vm = document.text("vm", 255);
  manifest.created_unix_ns = document.number("created_unix_ns", 0, kAnyNumber);
  manifest.parent = read_parent(document);
  manifest.host = read_names(document, "host", 256, "value", 16384);
  manifest.patches = read_names(document, "patches", 1024, "version", 64);
  manifest.sealed = document.flag("sealed");
  read_memory(document, manifest);
  if (!fault) // the index's length is that of memory's
    read_files(document, manifest);
  if (format == kFormatWithDisks && !fault)
    read_disks(document, manifest);
  document.finish();
  if (fault)
    return refuse(operation, object, fault->where + (fault->where.empty() ? "" : " ") + fault->reason);
  return manifest;
}

std::expected<Seal, vmm::Error> read_seal(std::string_view operation, std::string_view object,
                                          std::string_view text) {
  static constexpr std::string_view kBegin = "stopvisor-seal 1\ndigest ";
  static constexpr std::string_view kMac = "\nmac ";
  static constexpr size_t kDigits = 2 * sizeof(Hash);
  static constexpr size_t kPlain = kBegin.size() + kDigits + 1;
  const auto wrong = [&] { return refuse(operation, object, "is not a seal of format 1"); };
  if (!text.starts_with(kBegin) || !text.ends_with('\n') ||
      (text.size() != kPlain && text.size() != kPlain + kMac.size() + kDigits))
    return wrong();
  Seal seal;
  if (!from_hex(text.substr(kBegin.size(), kDigits), seal.digest))
    return wrong();
  text.remove_prefix(kPlain - 1);
  if (text.size() > 1) {
    seal.mac.emplace();
    if (!text.starts_with(kMac) || !from_hex(text.substr(kMac.size(), kDigits), *seal.mac))
      return wrong();
  }
  return seal;
}

} // namespace stopvisor::snapshot
