// SPDX-License-Identifier: Apache-2.0
// Writes manifests as JSON, the way read_manifest() takes them.
#include <nlohmann/json.hpp>

#include "tools/patch/manifest.h"
#include "vmm/control/fields.h"
#include "vmm/units.h"

namespace stopvisor::patch {
namespace {

using Json = nlohmann::ordered_json;
using Code = Operation::Code;

Json operation_document(const Write& write) {
  Json document = {{"op", name_of(write.operation.code)}, {"size", write.size()}};
  if (write.operation.code == Code::kCas) {
    uint64_t from = 0;
    for (size_t i = write.size(); i > 0; --i)
      from = from << 8 | std::to_integer<uint64_t>(write.expect[i - 1]);
    document["from"] = vmm::to_hex(from);
  }
  document[write.operation.code == Code::kCas ? "to" : "value"] = vmm::to_hex(write.operation.value);
  return document;
}

Json write_document(const Write& write) {
  Json document = {{"at", to_string(write.at)}, {"kind", name_of(write.kind)}};
  if (write.operation.code != Code::kCas)
    document["expect"] = vmm::hex_of(write.expect);
  if (!write.mask.empty())
    document["mask"] = vmm::hex_of(write.mask);
  if (write.operation.code == Code::kBytes)
    document["bytes"] = vmm::hex_of(write.operation.bytes);
  else
    document["operation"] = operation_document(write);
  if (write.function)
    document["function"] = {{"at", to_string(write.function->at)}, {"size", write.function->size}};
  if (!write.note.empty())
    document["note"] = write.note;
  return document;
}

Json predicate_document(const Predicate& predicate) {
  Json document = {{"at", to_string(predicate.at)},
                   {"size", predicate.size},
                   {"is", name_of(predicate.comparison)},
                   {"value", vmm::to_hex(predicate.value)}};
  if (predicate.comparison == Comparison::kMask)
    document["mask"] = vmm::to_hex(predicate.mask);
  return document;
}

Json target_document(const Target& target) {
  switch (target.kind) {
  case Target::Kind::kAny:
    break;
  case Target::Kind::kBuildId:
    return {{"build_id", vmm::hex_of(target.build_id)}};
  case Target::Kind::kBanner:
    return {{"banner", target.banner}};
  }
  return {{"any", true}};
}

} // namespace

std::string write_manifest(const Manifest& manifest) {
  Json document = {{"format", 1}, {"name", manifest.name}, {"version", manifest.version}};
  if (!manifest.description.empty())
    document["description"] = manifest.description;
  document["target"] = target_document(manifest.target);
  for (const auto& [name, list] : {std::pair{"depends", &manifest.depends},
                                   {"conflicts", &manifest.conflicts},
                                   {"replaces", &manifest.replaces}})
    if (!list->empty())
      document[name] = *list;
  for (const Write& write : manifest.writes)
    document["writes"].push_back(write_document(write));
  for (const Predicate& predicate : manifest.require)
    document["require"].push_back(predicate_document(predicate));
  for (const Predicate& predicate : manifest.ensure)
    document["ensure"].push_back(predicate_document(predicate));
  return document.dump(2, ' ', false, Json::error_handler_t::replace);
}

} // namespace stopvisor::patch
