// SPDX-License-Identifier: Apache-2.0
// The reader in another language, made from the reference alone, gets the same memory out.
#include <fcntl.h>

#include "tests/unit/snapshot/fixture.h"

namespace stopvisor::snapshot {
namespace {

using namespace testing;

class PythonReaderTest : public SnapshotTest {
protected:
  void SetUp() override {
    const char* const reader = std::getenv("READ_SNAPSHOT"); // where the tree is, set by the build
    if (reader == nullptr || std::system("python3 --version > /dev/null && zstd --version > /dev/null") != 0)
      GTEST_SKIP() << "needs READ_SNAPSHOT, python3 and zstd";
    command_ = std::string("python3 ") + reader;
    spill(path("key"), std::string(32, '\1'));
    spill(path("wrong"), std::string(64, 'a') + "\n");
  }
  [[nodiscard]] bool run(const std::string& arguments) const {
    return std::system((command_ + " " + arguments + " > " + path("out") + " 2> " + path("err")).c_str()) == 0;
  }
  void expect_extracted(const std::string& name) {
    EXPECT_TRUE(run("extract " + path(name) + " " + path("memory") + " --key " + path("key")))
        << slurp(path("err"));
    const std::string bytes = slurp(path("memory"));
    const uint64_t high = 2 * kRegionAlignment; // the next multiple behind the low region
    ASSERT_EQ(bytes.size(), high + kHighBytes);
    EXPECT_EQ(std::memcmp(bytes.data(), memory.low.data(), kLowBytes), 0);
    EXPECT_EQ(std::memcmp(bytes.data() + high, memory.high.data(), kHighBytes), 0);
    std::filesystem::remove(path("memory"));
  }

  std::string command_;
};

TEST_F(PythonReaderTest, ExtractsARawChainWithItsKey) {
  const Key one = key(1);
  make_chain(3, {.key = &one});
  expect_extracted("3");
}

TEST_F(PythonReaderTest, ExtractsACompressedChainWithItsKey) {
  const Key one = key(1);
  make_chain(1, {.encoding = Encoding::kZstd, .key = &one});
  expect_extracted("1");
}

TEST_F(PythonReaderTest, ListsWhatThereIs) {
  make_chain(1);
  EXPECT_TRUE(run("list " + path("1"))) << slurp(path("err"));
  EXPECT_NE(slurp(path("out")).find("\"vm\": \"vm1\""), std::string::npos);
  EXPECT_NE(slurp(path("out")).find("\"kind\": 1024"), std::string::npos);
}

TEST_F(PythonReaderTest, ExtractsADiskAndRefusesAChangedOne) {
  const Key one = key(1);
  std::string image(2 * kExtentBytes + 512, '\0');
  image[kExtentBytes + 5] = 'x';
  spill(path("image"), image);
  const vmm::UniqueFd file(::open(path("image").c_str(), O_RDONLY | O_CLOEXEC));
  Disk disk{.path = path("image"), .read_only = false, .bytes = image.size(), .changed_unix_ns = 7, .index = {}};
  contents.disks.push_back({.disk = disk, .image = {file.get(), "image"}, .check = {}});
  make("a", {.key = &one});
  const std::string words = "extract " + path("a") + " " + path("out.img") + " --key " + path("key") + " --disk ";
  EXPECT_TRUE(run(words + "0")) << slurp(path("err"));
  EXPECT_EQ(slurp(path("out.img")), image);
  std::filesystem::remove(path("out.img"));
  EXPECT_FALSE(run(words + "1"));
  std::filesystem::remove(path("out.img"));
  image[kExtentBytes + 6] = 'y';
  spill(path("a/disk-0.img"), image);
  EXPECT_FALSE(run(words + "0"));
}

TEST_F(PythonReaderTest, RefusesTheWrongKeyAndAChangedPage) {
  const Key one = key(1);
  make("a", {.key = &one});
  EXPECT_FALSE(run("list " + path("a") + " --key " + path("wrong")));
  std::string bytes = slurp(path("a/memory.raw"));
  for (size_t page = 0; page < kLowBytes / kPageBytes; ++page)
    bytes[page * kPageBytes] ^= 1;
  spill(path("a/memory.raw"), bytes);
  EXPECT_FALSE(run("extract " + path("a") + " " + path("memory") + " --key " + path("key")));
}

} // namespace
} // namespace stopvisor::snapshot
