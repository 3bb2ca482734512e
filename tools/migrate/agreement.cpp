// SPDX-License-Identifier: Apache-2.0
// What a destination settles on with whoever called.
#include <string>
#include <utility>

#include "tools/migrate/messages.h"

namespace stopvisor::migrate {
namespace {

std::unexpected<vmm::Error> refused(std::string_view operation, std::string reason) {
  return std::unexpected(
      vmm::Error{std::string(operation), "the protocol", std::move(reason), vmm::Status::kRefused});
}

std::string name_of_feature(unsigned bit) {
  switch (1ULL << bit) {
  case kFeatureZstd:
    return "compression by zstd";
  case kFeatureZeroRuns:
    return "pages of zeros by name";
  case kFeatureCopies:
    return "pages alike sent once";
  case kFeaturePostCopy:
    return "post-copy";
  case kFeatureTls:
    return "TLS";
  case kFeatureSharedMemory:
    return "memory handed over on one host";
  default:
    return "feature " + std::to_string(bit);
  }
}

std::string range_of(uint16_t least, uint16_t most) {
  return least == most ? "version " + std::to_string(least)
                       : "versions " + std::to_string(least) + " to " + std::to_string(most);
}

} // namespace

std::expected<Welcome, vmm::Error> agree(std::string_view operation, const Hello& hello) {
  if (hello.least_version > kProtocolVersion || hello.most_version < kProtocolVersion)
    return refused(operation, "the source (" + hello.program + ") speaks " +
                                  range_of(hello.least_version, hello.most_version) +
                                  ", this destination version " + std::to_string(kProtocolVersion));
  std::string missing;
  for (unsigned bit = 0; bit < 64; ++bit)
    if ((hello.required_features & ~kOurFeatures & 1ULL << bit) != 0)
      missing += (missing.empty() ? "" : ", ") + name_of_feature(bit);
  if (!missing.empty())
    return refused(operation, "the source requires what this destination lacks: " + missing);
  return Welcome{.version = kProtocolVersion, .features = hello.features & kOurFeatures, .program = {}};
}

} // namespace stopvisor::migrate
