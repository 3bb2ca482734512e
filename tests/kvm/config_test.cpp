// SPDX-License-Identifier: Apache-2.0
// What cannot be built is refused in one line, with the right status, and leaves nothing behind.
#include <sys/resource.h>

#include <filesystem>
#include <fstream>

#include "tests/kvm/kvm_fixture.h"
#include "tests/kvm/raw_guest.h"

namespace stopvisor::vmm::testing {
namespace {

class Configuration : public KvmTest {
protected:
  // The error of a configuration that must be refused.
  static Error refused(const VmConfig& config) {
    auto vm = Vm::create(config);
    EXPECT_FALSE(vm.has_value());
    return vm ? Error{} : vm.error();
  }
  static size_t open_descriptors() {
    const std::filesystem::directory_iterator all("/proc/self/fd");
    return static_cast<size_t>(std::distance(begin(all), end(all)));
  }
};

TEST_F(Configuration, RefusesNoVcpu) {
  const Error error = refused(probe(0, ""));
  EXPECT_EQ(error.status, Status::kUsage) << error.message();
}

TEST_F(Configuration, RefusesMoreVcpusThanKvmTakesAndNamesTheLimit) {
  const uint32_t most = KvmSystem::open()->max_cpus();
  const RawKernel kernel(Code().spin());
  const Error error = refused(raw(kernel.path(), most + 1));
  EXPECT_EQ(error.status, Status::kUsage);
  EXPECT_NE(error.message().find("at most " + std::to_string(most)), std::string::npos) << error.message();
}

TEST_F(Configuration, RefusesMoreVcpusThanTheProbeStarts) {
  EXPECT_EQ(refused(probe(probe::kMaxCpus + 1, "")).status, Status::kUsage);
}

TEST_F(Configuration, RefusesMemoryOfNoOrOddSize) {
  VmConfig config = probe(1, "");
  for (const uint64_t bytes : {0ULL, 64ULL << 20 | 1, (64ULL << 20) + 512, 1ULL << 20, ~0ULL << 12}) {
    config.memory_bytes = bytes;
    EXPECT_EQ(refused(config).status, Status::kUsage) << bytes;
  }
  config.backing = MemoryBacking::kHugetlb;
  config.memory_bytes = (64ULL << 20) + 4096;
  EXPECT_EQ(refused(config).status, Status::kUsage);
}

TEST_F(Configuration, SaysWhereThePoolOfHugePagesIsTooSmall) {
  std::ifstream file("/proc/sys/vm/nr_hugepages");
  uint64_t pages = 0;
  if (!(file >> pages))
    GTEST_SKIP() << "this host has no pool of huge pages";
  VmConfig config = probe(1, "");
  config.backing = MemoryBacking::kHugetlb;
  config.memory_bytes = (pages + 8) << 21;
  const Error error = refused(config);
  EXPECT_EQ(error.status, Status::kFailed);
  EXPECT_NE(error.message().find("huge pages"), std::string::npos) << error.message();
}

TEST_F(Configuration, RefusesAKernelThatIsNone) {
  VmConfig config = probe(1, "");
  config.kernel = "/does/not/exist";
  EXPECT_EQ(refused(config).status, Status::kFailed);
  config.kernel = "/dev/null";
  EXPECT_EQ(refused(config).status, Status::kFailed);
}

TEST_F(Configuration, LeavesNothingBehindWhenRefused) {
  (void)refused(probe(0, ""));
  const size_t before = open_descriptors();
  VmConfig config = probe(2, std::string(5000, 'x')); // found out last of all, as the kernel is loaded
  for (int turn = 0; turn < 5; ++turn)
    (void)refused(config);
  EXPECT_EQ(open_descriptors(), before);
}

TEST_F(Configuration, LeavesNothingBehindWhenTheVmIsGone) {
  const size_t before = open_descriptors();
  for (int turn = 0; turn < 3; ++turn)
    (void)started(probe(2, "scenarios=io"));
  EXPECT_EQ(open_descriptors(), before);
}

TEST(KvmDevice, SaysWhereItIsNotThere) {
  const auto system = KvmSystem::open("/does/not/exist");
  ASSERT_FALSE(system.has_value());
  EXPECT_EQ(system.error().status, Status::kFailed);
  EXPECT_NE(system.error().message().find("no KVM"), std::string::npos) << system.error().message();
}

TEST(KvmDevice, SaysWhereItIsSomethingElse) {
  const auto system = KvmSystem::open("/dev/null");
  ASSERT_FALSE(system.has_value());
  EXPECT_NE(system.error().message().find("is not KVM"), std::string::npos) << system.error().message();
}

} // namespace
} // namespace stopvisor::vmm::testing
