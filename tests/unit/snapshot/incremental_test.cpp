// SPDX-License-Identifier: Apache-2.0
// Incremental snapshots by comparison: exactly what differs from the parent, whoever wrote it.
#include "tests/unit/snapshot/fixture.h"
#include "tools/snapshot/incremental.h"

namespace stopvisor::snapshot {
namespace {

using namespace testing;

// Gives copies, as sources do that have no memory to point at.
class CopyingSource : public MemorySource {
public:
  explicit CopyingSource(std::unique_ptr<MemorySource> source) : source_(std::move(source)) {}
  [[nodiscard]] const std::vector<Region>& regions() const override { return source_->regions(); }
  [[nodiscard]] std::expected<ExtentBytes, vmm::Error> extent(uint64_t number,
                                                              std::span<std::byte> buffer) override {
    auto extent = source_->extent(number, {});
    extent->own.for_runs([&](size_t first, size_t count) {
      std::memcpy(buffer.data() + first * kPageBytes, extent->bytes + first * kPageBytes, count * kPageBytes);
      return true;
    });
    extent->bytes = buffer.data();
    return extent;
  }

private:
  std::unique_ptr<MemorySource> source_;
};

class IncrementalTest : public SnapshotTest {
protected:
  [[nodiscard]] std::expected<Base, vmm::Error> base_of(const std::string& parent,
                                                        const Key* with = nullptr) const {
    return Base::open("snapshot create", path(parent), with, "vm1", memory.source()->regions());
  }
  // RETURNS: what was made, or the error. Nobody says which pages were written.
  [[nodiscard]] std::expected<Created, vmm::Error> make_on(const std::string& parent, const std::string& name,
                                                           CreateOptions options = {}) const {
    const auto base = base_of(parent, options.key);
    if (!base)
      return std::unexpected(base.error());
    CopyingSource all(memory.source());
    options.parent = base->link();
    options.confirm = [&] { return base->confirm(); };
    return create(path(name), contents, *difference(base->chain(), all), options);
  }
  [[nodiscard]] std::string refusal(const std::string& parent, const CreateOptions& options = {}) const {
    const auto made = make_on(parent, "new", options);
    EXPECT_FALSE(std::filesystem::exists(path("new")));
    return made ? "" : made.error().message();
  }
};

TEST_F(IncrementalTest, AChainOfTenHasTheMemoryOfAFullOneInEveryEncoding) {
  const Key one = key(1);
  for (const Encoding encoding : {Encoding::kRaw, Encoding::kZstd}) {
    const std::string prefix = encoding == Encoding::kRaw ? "raw" : "zstd";
    const CreateOptions options{.encoding = encoding, .key = &one};
    make(prefix + "0", options);
    for (int i = 1; i <= 10; ++i) {
      memory.scribble(random, 30);
      ASSERT_TRUE(make_on(prefix + std::to_string(i - 1), prefix + std::to_string(i), options).has_value());
    }
    make(prefix + "full", options);
    Memory back;
    EXPECT_EQ(read_back(path(prefix + "10"), back, {.key = &one}), "");
    EXPECT_TRUE(back.same(memory));
    Memory full;
    EXPECT_EQ(read_back(path(prefix + "full"), full, {.key = &one}), "");
    EXPECT_TRUE(back.same(full));
  }
}

TEST_F(IncrementalTest, HoldsThePagesThatDifferAndNoOthers) {
  std::memset(memory.low.data() + 7 * kPageBytes, 0x11, kPageBytes);
  make("0");
  memory.low[3 * kPageBytes + 4095] ^= std::byte(1); // the last byte of a page
  std::memset(memory.low.data() + 7 * kPageBytes, 0, kPageBytes);
  memory.high[kHighBytes - 1] ^= std::byte(0x80);
  Progress progress;
  const auto made = make_on("0", "1", {.progress = &progress});
  ASSERT_TRUE(made.has_value()) << made.error().message();
  EXPECT_EQ(progress.done_bytes.load(), kLowBytes + kHighBytes); // all of it was looked at
  EXPECT_EQ(made->manifest.data_pages, 2U);
  EXPECT_EQ(made->manifest.zero_pages, 1U);
  EXPECT_EQ(made->manifest.parent_pages, (kLowBytes + kHighBytes) / kPageBytes - 3);
  Memory back;
  EXPECT_EQ(read_back(path("1"), back), "");
  EXPECT_TRUE(back.same(memory));
}

TEST_F(IncrementalTest, AMemoryThatIsItsParentsCostsNothing) {
  make("0");
  const std::byte old = memory.low[100];
  memory.low[100] = ~old;
  ASSERT_TRUE(make_on("0", "1").has_value());
  memory.low[100] = old; // as in the parent's parent: the parent counts
  const uint64_t pages = (kLowBytes + kHighBytes) / kPageBytes;
  ASSERT_EQ(make_on("1", "2")->manifest.parent_pages, pages - 1);
  EXPECT_EQ(make_on("2", "3")->manifest.parent_pages, pages);
  Memory back;
  EXPECT_EQ(read_back(path("3"), back), "");
  EXPECT_TRUE(back.same(memory));
}

TEST_F(IncrementalTest, AnotherMachinesSnapshotIsAParentWhereMemoryLiesAlike) {
  contents.vm = "another";
  make("0");
  contents.vm = "vm1";
  memory.scribble(random, 500);
  ASSERT_TRUE(make_on("0", "1").has_value());
  Memory back;
  EXPECT_EQ(read_back(path("1"), back), "");
  EXPECT_TRUE(back.same(memory));
}

TEST_F(IncrementalTest, AParentWithOtherMemoryIsRefused) {
  const std::vector<std::byte> bytes(kPageBytes);
  const auto small = source_of({{0, kPageBytes, bytes.data(), {}}}, false);
  ASSERT_TRUE(create(path("small"), contents, *small, {}).has_value());
  const std::string said = refusal("small");
  EXPECT_NE(said.find(path("small") + ": has other memory (4096 bytes at 0x0) than vm1 (3166208 bytes at 0x0, "),
            std::string::npos)
      << said;
}

TEST_F(IncrementalTest, AParentThatIsMissingDamagedOrSealedOtherwiseIsRefusedByName) {
  const Key one = key(1);
  const Key two = key(2);
  EXPECT_NE(refusal("none").find(path("none")), std::string::npos);
  make("plain");
  make("sealed", {.key = &one});
  EXPECT_NE(refusal("plain", {.key = &one}).find("is not sealed"), std::string::npos);
  EXPECT_NE(refusal("sealed").find("is sealed with a key"), std::string::npos);
  EXPECT_NE(refusal("sealed", {.key = &two}).find(path("sealed") + "/seal"), std::string::npos);
  std::string bytes = slurp(path("plain/memory.raw"));
  size_t page = 0;
  while (!Snapshot::open(path("plain"), {})->index()[0].data.has(page))
    ++page;
  bytes[page * kPageBytes] ^= 1;
  spill(path("plain/memory.raw"), bytes);
  EXPECT_NE(refusal("plain").find(path("plain/memory.raw") + ": extent 0"), std::string::npos);
}

TEST_F(IncrementalTest, AParentThatIsReplacedMeanwhileIsNoParent) {
  make("0");
  const auto base = base_of("0");
  ASSERT_TRUE(base.has_value());
  EXPECT_TRUE(base->confirm().has_value());
  std::filesystem::rename(path("0"), path("gone"));
  EXPECT_NE(base->confirm().error().message().find(path("0")), std::string::npos);
  make("0");
  EXPECT_NE(base->confirm().error().message().find("was replaced"), std::string::npos);
}

TEST_F(IncrementalTest, TheLongestChainIsNoParent) {
  const std::vector<std::byte> bytes(kPageBytes);
  const auto page = source_of({{0, kPageBytes, bytes.data(), {}}}, false);
  std::optional<Parent> parent;
  for (size_t i = 0; i < kMaxChain; ++i) {
    const std::string name = path(std::to_string(i));
    const auto made = create(name, contents, *page, {.parent = parent});
    ASSERT_TRUE(made.has_value());
    parent = {name, made->manifest.id, made->digest};
  }
  const auto on = [&](size_t member) {
    return Base::open("snapshot create", path(std::to_string(member)), nullptr, "vm1", page->regions());
  };
  EXPECT_TRUE(on(kMaxChain - 2).has_value());
  EXPECT_NE(on(kMaxChain - 1).error().message().find("longest chain"), std::string::npos);
}

} // namespace
} // namespace stopvisor::snapshot
