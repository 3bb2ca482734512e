// SPDX-License-Identifier: Apache-2.0
// Snapshots that were damaged, or changed by somebody: refused, by name.
#include <tuple>

#include "tests/unit/snapshot/fixture.h"

namespace stopvisor::snapshot {
namespace {

using namespace testing;

class HostileTest : public SnapshotTest {
protected:
  [[nodiscard]] std::string reading(const std::string& name, const OpenOptions& options = {}) const {
    Memory back;
    return read_back(path(name), back, options);
  }
  // Changes one bit of a file; it must be refused then.
  void expect_flip_refused(const std::string& file, size_t at, const OpenOptions& options) {
    const std::string good = slurp(path(file));
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ (1 << (random() % 8)));
    spill(path(file), bad);
    const std::string member = file.substr(0, file.find('/'));
    const std::string said = reading(member, options);
    EXPECT_NE(said.find(path(member) + "/"), std::string::npos) << file << " byte " << at << ": " << said;
    spill(path(file), good);
  }
  // Where the first byte of a data page is in a raw snapshot.
  [[nodiscard]] uint64_t first_data(const std::string& name) const {
    const auto snapshot = Snapshot::open(path(name), {});
    uint64_t found = 0;
    for (uint64_t number = snapshot->index().size(); number-- > 0;)
      snapshot->index()[number].data.for_runs([&](size_t first, size_t /*count*/) {
        found = number * kExtentBytes + first * kPageBytes;
        return false;
      });
    return found;
  }
};

TEST_F(HostileTest, EveryFlippedByteOfTheSmallFilesIsRefused) {
  memory = Memory();
  memory.scribble(random, 20);
  const Key one = key(1);
  make("a", {.key = &one});
  for (const char* const file : {kSealName, kManifestName, kMachineName, kStateName, kIndexName}) {
    const std::string name = std::string("a/") + file;
    for (size_t at = 0; at < slurp(path(name)).size(); ++at) {
      // Whoever has no key cannot tell a seal's MAC from another.
      const bool is_mac = std::string_view(file) == kSealName && at >= write_seal({}).size() + 4;
      if (!is_mac)
        expect_flip_refused(name, at, {.unchecked = true});
      if (is_mac || at % 16 == 0)
        expect_flip_refused(name, at, {.key = &one});
    }
  }
}

TEST_F(HostileTest, AFlippedByteOfEachSortOfMemoryIsRefused) {
  make("raw");
  const std::string file = "raw/memory.raw";
  const auto index = Snapshot::open(path("raw"), {})->index();
  const auto flip = [&](uint64_t page) {
    for (const uint64_t at : {uint64_t{0}, kPageBytes / 2, kPageBytes - 1})
      expect_flip_refused(file, page * kPageBytes + at, {});
  };
  for (uint64_t number = 0; number < index.size(); ++number)
    for (const PageSet& sort : {index[number].data, index[number].zeros})
      sort.for_runs([&](size_t first, size_t count) {
        flip(number * kExtentPages + first + count - 1);
        return false; // the first run of each sort is enough
      });
  flip(kLowBytes / kPageBytes); // between the regions
}

TEST_F(HostileTest, AFlippedByteOfACompressedMemoryIsRefusedWhereverItIs) {
  memory = Memory();
  memory.scribble(random, 20);
  make("zstd", {.encoding = Encoding::kZstd});
  const std::string file = "zstd/memory.zst";
  const auto index = Snapshot::open(path("zstd"), {})->index();
  for (const Extent& extent : index)
    for (uint64_t at = 0; at < extent.stored_bytes; at += at < 32 || at + 32 > extent.stored_bytes ? 1 : 97)
      expect_flip_refused(file, extent.offset + at, {});
}

TEST_F(HostileTest, FlippedBytesOfMemoryAreRefusedAtRandomPlaces) {
  make("raw");
  make("zstd", {.encoding = Encoding::kZstd});
  for (const char* const file : {"raw/memory.raw", "zstd/memory.zst"}) {
    const size_t size = std::filesystem::file_size(path(file));
    for (int round = 0; round < 20; ++round)
      expect_flip_refused(file, random() % size, {});
  }
}

TEST_F(HostileTest, AMemberThatIsDamagedAnywhereIsRefusedByNameAndSoIsTheWholeChain) {
  memory = Memory();
  memory.scribble(random, 20);
  make_chain(2, {}, 6);
  for (const char* const member : {"0", "1", "2"})
    for (const char* const file : {kSealName, kManifestName, kMachineName, kStateName, kIndexName, kRawName}) {
      const std::string name = std::string(member) + "/" + file;
      const std::string good = slurp(path(name));
      std::string bad = good;
      const size_t at = std::string_view(file) == kRawName ? first_data(member) : good.size() / 2;
      bad[at] = static_cast<char>(bad[at] ^ 1);
      for (const std::string& text : {bad, good.substr(0, good.size() - 1), good + '\0', std::string()}) {
        spill(path(name), text);
        EXPECT_NE(reading("2").find(path(member) + "/"), std::string::npos) << name << ": " << reading("2");
      }
      std::filesystem::remove(path(name));
      EXPECT_NE(reading("2").find(path(name)), std::string::npos) << name << ": " << reading("2");
      spill(path(name), good);
    }
  EXPECT_EQ(reading("2"), "");
}

TEST_F(HostileTest, TruncatedAndLongerFilesAreRefused) {
  make("a", {.encoding = Encoding::kZstd});
  for (const char* const file : {kSealName, kManifestName, kMachineName, kStateName, kIndexName, kZstdName}) {
    const std::string name = std::string("a/") + file;
    const std::string good = slurp(path(name));
    for (const size_t size : {size_t{0}, good.size() / 2, good.size() - 1}) {
      spill(path(name), good.substr(0, size));
      EXPECT_NE(reading("a").find(file), std::string::npos) << name << " " << size;
    }
    spill(path(name), good + '\0');
    EXPECT_NE(reading("a"), "") << name;
    std::filesystem::remove(path(name));
    EXPECT_NE(reading("a").find(file), std::string::npos) << name;
    spill(path(name), good);
  }
  EXPECT_EQ(reading("a"), "");
}

TEST_F(HostileTest, OnlyTheRightKeyOpensASealedSnapshot) {
  const Key one = key(1);
  const Key two = key(2);
  make("sealed", {.key = &one});
  make("plain");
  EXPECT_EQ(reading("sealed", {.key = &one}), "");
  EXPECT_NE(reading("sealed", {.key = &two}), "");
  EXPECT_NE(reading("sealed"), "");
  EXPECT_EQ(reading("sealed", {.unchecked = true}), "");
  EXPECT_NE(reading("plain", {.key = &one}), "");
}

TEST_F(HostileTest, WithoutTheKeyNobodyCanChangeAPage) {
  const Key one = key(1);
  const Created made = make("a", {.key = &one});
  auto index = Snapshot::open(path("a"), {.key = &one})->index();
  // A page of the first extent, with its checksum, the index's, the manifest's and the seal's digest made anew.
  std::string bytes = slurp(path("a/memory.raw"));
  size_t page = 0;
  while (!index[0].data.has(page))
    ++page;
  bytes[page * kPageBytes + 17] ^= 1;
  spill(path("a/memory.raw"), bytes);
  index[0].xxh3 = xxh3_of_pages(reinterpret_cast<const std::byte*>(bytes.data()), index[0].data);
  const auto forged = write_index(index);
  spill(path("a/extents.idx"), std::string(reinterpret_cast<const char*>(forged.data()), forged.size()));
  Manifest manifest = made.manifest;
  manifest.index.xxh3 = xxh3_of(forged);
  reseal("a", write_manifest(manifest));
  EXPECT_EQ(reading("a", {.unchecked = true}), ""); // all that anybody can compute is right
  EXPECT_NE(reading("a", {.key = &one}).find("seal"), std::string::npos);
}

TEST_F(HostileTest, AMemberThatIsMissingReorderedOrForeignIsRefusedByName) {
  make_chain(3);
  const auto refused = [&](const std::vector<std::string>& names) {
    std::vector<std::string> directories;
    for (const auto& name : names)
      directories.push_back(path(name));
    const auto chain = Chain::open(directories, {});
    return chain ? "" : chain.error().message();
  };
  EXPECT_EQ(refused({"3", "2", "1", "0"}), "");
  EXPECT_NE(refused({"3", "1", "2", "0"}).find(path("1")), std::string::npos);
  EXPECT_NE(refused({"3", "2", "0"}).find(path("0")), std::string::npos);
  EXPECT_NE(refused({"3", "2", "1"}).find("missing"), std::string::npos);
  EXPECT_NE(refused({"3", "2", "1", "0", "0"}), "");
  std::filesystem::rename(path("1"), path("gone"));
  EXPECT_NE(reading("3").find(path("1")), std::string::npos);
  make("1"); // a full one, of the same machine
  EXPECT_NE(reading("3").find(path("1")), std::string::npos);
}

TEST_F(HostileTest, AParentThatWasMadeAnewWithTheSameIdIsRefused) {
  make_chain(1);
  Manifest changed = Snapshot::open(path("0"), {})->manifest();
  changed.vm = "other";
  reseal("0", write_manifest(changed));
  EXPECT_EQ(reading("0"), "");
  EXPECT_NE(reading("1").find("digest"), std::string::npos);
}

TEST_F(HostileTest, ANumberBeyondAllNumbersIsRefused) {
  const auto manifest = read_manifest("read", "manifest.json", R"({"format": 1e999})");
  ASSERT_FALSE(manifest.has_value());
  EXPECT_NE(manifest.error().reason.find("too large"), std::string::npos) << manifest.error().reason;
}

TEST_F(HostileTest, RandomBytesNeverGetThroughAParser) {
  const Created made = make("a");
  const std::string whole_seal = write_seal({.digest = made.digest, .mac = made.digest});
  const std::string whole_state = slurp(path("a/state.bin"));
  const std::string whole_text = write_manifest(made.manifest);
  for (int round = 0; round < 20000; ++round) {
    std::string state = whole_state;
    std::string text = whole_text;
    std::string seal = whole_seal;
    auto index = write_index(std::vector<Extent>(extents_of(span_of(made.manifest.regions))));
    for (int i = 0; i < 1 + round % 4; ++i) {
      state[random() % state.size()] = static_cast<char>(random());
      text[random() % text.size()] = static_cast<char>(random());
      seal[random() % seal.size()] = static_cast<char>(random());
      index[random() % index.size()] = std::byte(random());
    }
    state.resize(random() % 8 == 0 ? random() % state.size() : state.size());
    std::ignore = read_state("fuzz", "state", bytes_of(state));
    std::ignore = read_manifest("fuzz", "manifest", text);
    std::ignore = read_seal("fuzz", "seal", seal);
    std::ignore = read_index("fuzz", "index", index, made.manifest);
  }
}

} // namespace
} // namespace stopvisor::snapshot
