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

  // Of an unsealed snapshot "a" with a change in its manifest. RETURNS: what it says.
  std::string refusal_of(const std::string& from, const std::string& to, const std::string& verb = "list") {
    const std::string good = slurp(path("a/manifest.json"));
    const size_t at = good.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    reseal("a", std::string(good).replace(at, from.size(), to));
    std::filesystem::remove(path("memory"));
    EXPECT_FALSE(run(verb + " " + path("a") + (verb == "list" ? "" : " " + path("memory")))) << to;
    reseal("a", good);
    return slurp(path("err"));
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

TEST_F(PythonReaderTest, OpensNothingThatAManifestNames) {
  make("a");
  spill(path("secret"), std::string(contents.machine.size(), 's')); // as long as what it takes the place of
  EXPECT_NE(refusal_of("\"machine.dtb\"", "\"../secret\"").find("another file in the place of machine.dtb"),
            std::string::npos)
      << slurp(path("err"));
  EXPECT_NE(refusal_of("\"machine.dtb\"", "\"" + path("secret") + "\"").find("another file"), std::string::npos);
  std::filesystem::remove(path("a/machine.dtb"));
  std::filesystem::create_symlink(path("secret"), path("a/machine.dtb"));
  EXPECT_FALSE(run("list " + path("a")));
  EXPECT_NE(slurp(path("err")).find("symbolic link"), std::string::npos) << slurp(path("err"));
}

TEST_F(PythonReaderTest, WritesNoMoreThanTheMemoryThereIs) {
  make("a", {.encoding = Encoding::kZstd});
  const std::string high = "\"bytes\": " + std::to_string(kHighBytes);
  EXPECT_NE(refusal_of(high, "\"bytes\": 9007199254740992", "extract").find("bytes of a region"), std::string::npos)
      << slurp(path("err"));
  EXPECT_NE(refusal_of(high, "\"bytes\": -4096", "extract").find("bytes of a region"), std::string::npos);
  EXPECT_NE(refusal_of(high, "\"bytes\": 1099507433472", "extract").find("is not of this memory"),
            std::string::npos)
      << slurp(path("err"));
  EXPECT_FALSE(std::filesystem::exists(path("memory")));
  EXPECT_EQ(refusal_of("\"memory\"", "\"memories\"").find("Traceback"), std::string::npos);
  // A frame of a few bytes with much more in it than the extent has pages. Its entry is as long as it was.
  const auto index = Snapshot::open(path("a"), {})->index();
  const std::string bomb = path("a/memory.zst"); // what is left of the first frame is a skippable one
  ASSERT_EQ(std::system(("head -c 268435456 /dev/zero | zstd -q > " + path("bomb")).c_str()), 0);
  const std::string frame = slurp(path("bomb"));
  std::string stored = slurp(bomb);
  const size_t first =
      std::ranges::find_if(index, [](const Extent& extent) { return extent.data_pages != 0; })->stored_bytes;
  ASSERT_LT(frame.size() + 8, first);
  std::string filled = frame + std::string("\x50\x2a\x4d\x18", 4);
  const auto rest = static_cast<uint32_t>(first - frame.size() - 8);
  for (const unsigned shift : {0U, 8U, 16U, 24U})
    filled += static_cast<char>(rest >> shift & 0xff);
  spill(bomb, stored.replace(0, filled.size(), filled));
  command_ = "ulimit -v 262144; " + command_; // less than is in the frame, and much more than it needs
  EXPECT_FALSE(run("extract " + path("a") + " " + path("memory")));
  EXPECT_NE(slurp(path("err")).find("has not its length"), std::string::npos) << slurp(path("err"));
}

} // namespace
} // namespace stopvisor::snapshot
