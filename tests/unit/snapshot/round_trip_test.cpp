// SPDX-License-Identifier: Apache-2.0
// What is written is what is read: full, incremental, raw, compressed, sealed; and chains are merged and pruned.
#include <sys/mman.h>
#include <sys/stat.h>

#include "tests/unit/snapshot/fixture.h"
#include "tools/snapshot/chain_edit.h"

namespace stopvisor::snapshot {
namespace {

using namespace testing;

class RoundTripTest : public SnapshotTest {};

TEST_F(RoundTripTest, AFullSnapshotIsReadBackInEveryEncodingWithAndWithoutAKey) {
  const Key one = key(1);
  int number = 0;
  for (const Encoding encoding : {Encoding::kRaw, Encoding::kZstd})
    for (const Key* const with : {static_cast<const Key*>(nullptr), &one}) {
      const std::string name = std::to_string(number++);
      make(name, {.encoding = encoding, .key = with});
      Memory back;
      EXPECT_EQ(read_back(path(name), back, {.key = with}), "");
      EXPECT_TRUE(back.same(memory));
      const auto snapshot = Snapshot::open(path(name), {.key = with});
      ASSERT_TRUE(snapshot.has_value());
      EXPECT_EQ(snapshot->state(), contents.state);
      EXPECT_EQ(snapshot->machine(), contents.machine);
      EXPECT_EQ(snapshot->manifest().host, contents.host);
      EXPECT_EQ(snapshot->manifest().patches, contents.patches);
      EXPECT_EQ(snapshot->manifest().sealed, with != nullptr);
    }
}

TEST_F(RoundTripTest, TwoSnapshotsOfTheSameMachineHaveTheSameStateAndMemory) {
  make("a");
  make("b");
  for (const char* const file : {kStateName, kIndexName, kMachineName, kRawName})
    EXPECT_EQ(slurp(path("a/") + file), slurp(path("b/") + file)) << file;
}

TEST_F(RoundTripTest, ARawSnapshotCanBeMappedAsItIs) {
  make("a");
  const auto chain = Chain::open(path("a"), {});
  ASSERT_TRUE(chain.has_value());
  ASSERT_TRUE(chain->newest().mappable());
  const Region high = chain->regions().at(1);
  EXPECT_EQ(high.offset % kRegionAlignment, 0U);
  void* const mapped = ::mmap(nullptr, high.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, chain->newest().memory_fd(),
                              static_cast<off_t>(high.offset));
  ASSERT_NE(mapped, MAP_FAILED);
  EXPECT_EQ(std::memcmp(mapped, memory.high.data(), high.bytes), 0);
  ::munmap(mapped, high.bytes);
}

TEST_F(RoundTripTest, ZeroPagesTakeNoSpace) {
  memory = Memory();
  make("a");
  struct stat status{};
  ASSERT_EQ(::stat(path("a/memory.raw").c_str(), &status), 0);
  EXPECT_EQ(status.st_blocks, 0);
  make("b", {.encoding = Encoding::kZstd});
  EXPECT_EQ(std::filesystem::file_size(path("b/memory.zst")), 0U);
}

TEST_F(RoundTripTest, EveryMemberOfAChainOfTenIsReadBack) {
  const Key one = key(1);
  const auto history = make_chain(10, {.key = &one});
  for (size_t i = 0; i < history.size(); ++i) {
    Memory back;
    EXPECT_EQ(read_back(path(std::to_string(i)), back, {.key = &one}), "");
    EXPECT_TRUE(back.same(history[i])) << i;
  }
}

TEST_F(RoundTripTest, AnIncrementalSnapshotHoldsDirtyPagesAlone) {
  const Created base = make("0");
  memory.low_dirty[0] = 1;
  memory.low[5] = std::byte(0xaa);
  const Created second = make("1", {}, "0", &base);
  EXPECT_EQ(second.manifest.data_pages + second.manifest.zero_pages, 1U);
}

TEST_F(RoundTripTest, AMergedChainIsFullAndHasTheSameMemoryAndState) {
  const auto history = make_chain(10, {.encoding = Encoding::kZstd});
  const auto merged = merge(path("10"), path("full"), {});
  ASSERT_TRUE(merged.has_value()) << merged.error().message();
  EXPECT_FALSE(merged->manifest.parent.has_value());
  for (int i = 0; i <= 10; ++i)
    std::filesystem::remove_all(path(std::to_string(i)));
  Memory back;
  EXPECT_EQ(read_back(path("full"), back), "");
  EXPECT_TRUE(back.same(history.back()));
  EXPECT_EQ(Snapshot::open(path("full"), {})->state(), contents.state);
}

TEST_F(RoundTripTest, ARebasedSnapshotStandsOnItsNewParent) {
  const auto history = make_chain(4);
  const auto rebased = rebase(path("4"), path("1"), path("new"), {});
  ASSERT_TRUE(rebased.has_value()) << rebased.error().message();
  for (const char* const gone : {"2", "3", "4"})
    std::filesystem::remove_all(path(gone));
  Memory back;
  EXPECT_EQ(read_back(path("new"), back), "");
  EXPECT_TRUE(back.same(history[4]));
}

TEST_F(RoundTripTest, PruningRemovesWhatNobodyElseStandsOn) {
  const auto history = make_chain(4);
  const auto other = rebase(path("3"), path("1"), path("other"), {});
  ASSERT_TRUE(other.has_value());
  EXPECT_EQ(prune(path("3"), {}).error().status, vmm::Status::kRefused); // 4 stands on it
  const auto pruned = prune(path("4"), {});
  ASSERT_TRUE(pruned.has_value()) << pruned.error().message();
  EXPECT_EQ(pruned->removed, (std::vector{path("3"), path("2")}));
  EXPECT_EQ(pruned->kept, (std::vector{path("1"), path("0")}));
  EXPECT_EQ(entries(), (std::vector<std::string>{"0", "1", "4", "other"}));
  Memory back;
  EXPECT_EQ(read_back(path("4"), back), "");
  EXPECT_TRUE(back.same(history[4]));
  EXPECT_EQ(read_back(path("other"), back), "");
  EXPECT_TRUE(back.same(history[3]));
}

TEST_F(RoundTripTest, PruningByALinkIsPruningOfWhatIsThere) {
  const auto history = make_chain(3);
  std::filesystem::create_directory(path("links"));
  std::filesystem::create_directory_symlink(path("2"), path("links/2"));
  EXPECT_EQ(prune(path("links/2"), {}).error().status, vmm::Status::kRefused); // 3 stands on it
  std::filesystem::remove_all(path("3"));
  const auto pruned = prune(path("links/2"), {});
  ASSERT_TRUE(pruned.has_value()) << pruned.error().message();
  EXPECT_TRUE(std::filesystem::is_symlink(path("links/2")));
  EXPECT_EQ(entries(), (std::vector<std::string>{"2", "links"}));
  Memory back;
  EXPECT_EQ(read_back(path("links/2"), back), "");
  EXPECT_TRUE(back.same(history[2]));
}

TEST_F(RoundTripTest, PruningRemovesNoFileOfAnybodyElse) {
  make_chain(3);
  spill(path("1/notes"), "mine");
  const auto pruned = prune(path("3"), {});
  ASSERT_TRUE(pruned.has_value()) << pruned.error().message();
  EXPECT_EQ(pruned->removed, std::vector{path("2")});
  EXPECT_EQ(pruned->kept, (std::vector{path("1"), path("0")}));
  EXPECT_EQ(slurp(path("1/notes")), "mine");
  const auto refused = prune(path("1"), {});
  ASSERT_FALSE(refused.has_value());
  EXPECT_NE(refused.error().message().find("notes: is no file of the snapshot"), std::string::npos)
      << refused.error().message();
  EXPECT_EQ(entries(), (std::vector<std::string>{"0", "1", "3"}));
}

TEST_F(RoundTripTest, PruningSeesASnapshotWhoseNameBeginsWithADot) {
  make_chain(3);
  std::filesystem::rename(path("3"), path(".3"));
  EXPECT_EQ(prune(path("2"), {}).error().status, vmm::Status::kRefused);
}

TEST_F(RoundTripTest, PruningRemovesNothingWhereASnapshotCannotBeRead) {
  const auto history = make_chain(2);
  std::filesystem::create_directory(path("broken"));
  spill(path("broken/manifest.json"), "{}");
  EXPECT_EQ(prune(path("2"), {}).error().status, vmm::Status::kRefused);
  EXPECT_EQ(entries(), (std::vector<std::string>{"0", "1", "2", "broken"}));
}

TEST_F(RoundTripTest, AFolderCanMoveWithItsChain) {
  const auto history = make_chain(2);
  std::filesystem::create_directory(path("elsewhere"));
  for (const char* const name : {"0", "1", "2"})
    std::filesystem::rename(path(name), path("elsewhere/") + name);
  Memory back;
  EXPECT_EQ(read_back(path("elsewhere/2"), back), "");
  EXPECT_TRUE(back.same(history[2]));
}

TEST_F(RoundTripTest, ProgressCountsAllBytes) {
  Progress progress;
  make("a", {.progress = &progress});
  EXPECT_EQ(progress.done_bytes.load(), kLowBytes + kHighBytes);
}

} // namespace
} // namespace stopvisor::snapshot
