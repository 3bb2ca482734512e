// SPDX-License-Identifier: Apache-2.0
#include "tools/migrate/arriving_machine.h"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "tools/snapshot/disk_image.h"
#include "vmm/machine_reader.h"

namespace stopvisor::migrate {
namespace {

using vmm::Error;

Error refused(const std::string& operation, const std::string& vm, std::string reason) {
  return {operation, vm, std::move(reason), vmm::Status::kRefused};
}

} // namespace

std::expected<vmm::VmConfig, Error> config_of(const std::string& operation, const std::string& vm,
                                              const MachineFacts& facts) {
  const auto tree = std::ranges::find(facts.requirements, static_cast<uint32_t>(vmm::StateKind::kMachine),
                                      &vmm::StateSection::kind);
  if (tree == facts.requirements.end() || tree->payload.empty())
    return std::unexpected(refused(operation, vm, "the source does not describe its machine"));
  auto config = vmm::read_machine(tree->payload);
  if (!config)
    return std::unexpected(refused(operation, vm, "the source's machine: " + config.error().text()));
  if (facts.cpus == 0 || facts.streams == 0 || facts.streams > kMaxLinks ||
      facts.disks.size() != config->disks.size())
    return std::unexpected(refused(operation, vm, "the source's numbers of vCPUs, streams or disks cannot be"));
  config->cpus = facts.cpus; // online or not: the description tells of those that were offered last
  config->max_cpus = std::max(config->max_cpus, config->cpus);
  config->bare = true;
  config->start_held = true;
  config->disks_unlocked = true;
  return config;
}

std::expected<void, Error> check_machine(const std::string& operation, const std::string& vm,
                                         const MachineFacts& facts, const vmm::Vm& made) {
  const bool alike = std::ranges::equal(made.memory().slots(), facts.memory,
                                        [](const vmm::MemorySlot& slot, const MemoryRegion& region) {
                                          return slot.base.value == region.gpa && slot.size_bytes == region.bytes;
                                        });
  if (!alike)
    return std::unexpected(refused(operation, vm, "guest memory lies elsewhere at the source"));
  const std::vector<int> images = made.disk_images();
  for (size_t number = 0; number < images.size() && number < facts.disks.size(); ++number)
    if (const uint64_t here = snapshot::image_at(images[number]).bytes; here != facts.disks[number].bytes)
      return std::unexpected(refused(operation, vm,
                                     "disk " + std::to_string(number) + ": " + made.config().disks[number].path +
                                         " has " + std::to_string(here) + " bytes, at the source it has " +
                                         std::to_string(facts.disks[number].bytes)));
  return made.check_requirements(facts.requirements);
}

} // namespace stopvisor::migrate
