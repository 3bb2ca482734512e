// SPDX-License-Identifier: Apache-2.0
// A machine's description: taken, refused, and compared with the one there is, whatever it holds.
#include <cstdint>
#include <cstring>

#include "tests/fuzz/fuzzer.h"
#include "vmm/machine_reader.h"
#include "vmm/state/machine_match.h"
#include "vmm/vm_boot.h"

namespace stopvisor::fuzz {
namespace {

Bytes described(const vmm::VmConfig& config) {
  auto tree = vmm::describe_machine(vmm::machine_of(config, stopper::CpuMask::first_n(config.cpus), true));
  must(tree.has_value(), "the seeds");
  return *std::move(tree);
}

vmm::VmConfig small_config() {
  vmm::VmConfig config;
  config.name = "vm1";
  config.max_cpus = 1;
  config.memory_bytes = 16 << 20;
  return config;
}

vmm::VmConfig large_config() {
  vmm::VmConfig config = small_config();
  config.cpus = 2;
  config.max_cpus = 3;
  config.memory_bytes = 4ULL << 30;
  config.kernel = "/boot/vmlinux";
  config.cmdline = "console=ttyS0 quiet";
  config.disks = {{"/srv/a.img", false}, {"/srv/b.img", true}};
  config.nets = {{"tap0", vmm::parse_mac("02:00:00:00:00:07")}};
  return config;
}

// A tree, aligned as it must be, with nothing behind it.
class Aligned {
public:
  explicit Aligned(ByteSpan bytes) : words_((bytes.size() + 7) / 8), size_(bytes.size()) {
    if (!bytes.empty())
      std::memcpy(words_.data(), bytes.data(), bytes.size());
  }
  [[nodiscard]] ByteSpan bytes() const { return std::as_bytes(std::span(words_)).first(size_); }

private:
  std::vector<uint64_t> words_;
  size_t size_;
};

} // namespace

std::vector<Bytes> seeds() {
  return {described(small_config()), described(large_config())};
}

void try_one(ByteSpan input) {
  static const Aligned here(described(small_config()));
  const Aligned tree(input);
  const bool fits = vmm::check_machine({tree.bytes(), 1}, {here.bytes(), 1}).has_value();
  must(!fits || !input.empty(), "nothing for a machine");
  if (const auto config = vmm::read_machine(tree.bytes())) {
    const Aligned again(described(*config));
    must(vmm::read_machine(again.bytes()).has_value(), "a machine that is not read back");
  }
}

} // namespace stopvisor::fuzz
