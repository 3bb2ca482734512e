// SPDX-License-Identifier: Apache-2.0
// Images of disks in snapshots: what goes in comes out, shared or copied; what was changed is refused by name.
#include <fcntl.h>
#include <sys/stat.h>

#include <atomic>
#include <set>

#include "tests/unit/snapshot/fixture.h"
#include "tools/snapshot/chain_edit.h"
#include "tools/snapshot/disk_restore.h"

namespace stopvisor::snapshot {
namespace {

using namespace testing;

constexpr uint64_t kDiskBytes = 3 * kExtentBytes + 512;

// Lets one call fail, and blocks be shared or not.
class Fickle final : public FileSystem {
public:
  size_t fail_at = SIZE_MAX;
  std::atomic<size_t> calls = 0;
  int clone_error = EOPNOTSUPP;

protected:
  int fault(Call call) override {
    if (calls++ == fail_at)
      return EIO;
    return call == Call::kClone ? clone_error : 0;
  }
};

class DiskTest : public SnapshotTest {
protected:
  DiskTest() {
    memory = Memory();
    image_.assign(kDiskBytes, '\0');
    for (const size_t at : {size_t{0}, size_t{100}, size_t{2} * kExtentBytes + 5, size_t{kDiskBytes} - 1})
      image_[at] = 'x'; // extent 1 has nothing
    spill(path("image"), image_);
    file_.reset(::open(path("image").c_str(), O_RDONLY | O_CLOEXEC));
    Disk read_only{.path = "/elsewhere", .read_only = true, .bytes = 4096, .changed_unix_ns = 5, .index = {}};
    Disk disk{.path = path("image"), .read_only = false, .bytes = kDiskBytes, .changed_unix_ns = 7, .index = {}};
    contents.disks.push_back({.disk = read_only, .check = {}});
    contents.disks.push_back({.disk = disk, .image = {file_.get(), "image"}, .check = {}});
  }
  // RETURNS: the error of reading everything and putting disk 1 to "out", or an empty string.
  [[nodiscard]] std::string reading(const std::string& name, const OpenOptions& options = {}) const {
    const auto chain = Chain::open(path(name), options);
    if (!chain)
      return chain.error().message();
    if (const auto good = chain->verify({}); !good)
      return good.error().message();
    std::filesystem::remove(path("out"));
    PlacedDisks placed;
    if (const auto done = place_disks("restore", chain->newest(), {.places = {{1, path("out")}}}, placed); !done)
      return done.error().message();
    placed.keep();
    placed.remove(); // it is the guest's
    return std::filesystem::exists(path("out")) ? "" : "out is gone";
  }
  void expect_refused(const std::string& file, const std::string& bad, const OpenOptions& options,
                      const std::string& named) {
    const std::string good = slurp(path(file));
    spill(path(file), bad);
    EXPECT_NE(reading("a", options).find(named), std::string::npos) << file << ": " << reading("a", options);
    spill(path(file), good);
  }

  std::string image_;
  vmm::UniqueFd file_;
};

TEST_F(DiskTest, AnImageComesOutAsItWentInAndOthersAreOnlyDescribed) {
  const Key one = key(1);
  for (const Key* const with : {static_cast<const Key*>(nullptr), &one}) {
    const std::string name = with == nullptr ? "plain" : "sealed";
    make(name, {.key = with});
    EXPECT_EQ(reading(name, {.key = with}), "");
    EXPECT_EQ(slurp(path("out")), image_);
    const auto snapshot = Snapshot::open(path(name), {.key = with});
    ASSERT_TRUE(snapshot.has_value());
    const auto& disks = snapshot->manifest().disks;
    ASSERT_EQ(disks.size(), 2U);
    EXPECT_TRUE(disks[0].read_only && !disks[0].index && disks[0].path == "/elsewhere");
    EXPECT_TRUE(disks[0].bytes == 4096 && disks[0].changed_unix_ns == 5 && disks[1].changed_unix_ns == 7);
    EXPECT_TRUE(disks[1].index.has_value());
    EXPECT_FALSE(std::filesystem::exists(path(name + "/disk-0.img")));
  }
}

TEST_F(DiskTest, WhereBlocksCannotBeSharedHolesStayHoles) {
  Fickle files;
  make("a", {.files = &files});
  EXPECT_EQ(slurp(path("a/disk-1.img")), image_);
  struct stat status{};
  ASSERT_EQ(::stat(path("a/disk-1.img").c_str(), &status), 0);
  EXPECT_LT(static_cast<uint64_t>(status.st_blocks) * 512, 3 * kExtentBytes);
}

TEST_F(DiskTest, ProgressComesToItsEnd) {
  Progress progress;
  Fickle files;
  make("a", {.progress = &progress, .files = &files});
  EXPECT_GE(progress.total_bytes.load(), kLowBytes + kHighBytes + 2 * kDiskBytes);
  EXPECT_LE(progress.done_bytes.load(), progress.total_bytes.load());
  EXPECT_GE(progress.done_bytes.load(), kLowBytes + kHighBytes + 2 * kDiskBytes);
}

TEST_F(DiskTest, WithoutDisksTheFormatIsTheFirst) {
  contents.disks.clear();
  make("a");
  EXPECT_NE(slurp(path("a/manifest.json")).find("\"format\": 1"), std::string::npos);
  EXPECT_EQ(slurp(path("a/manifest.json")).find("disks"), std::string::npos);
}

TEST_F(DiskTest, EveryFlippedByteOfAnIndexAndAnyOfAnImageAreRefusedByName) {
  const Key one = key(1);
  make("a", {.key = &one});
  const std::string index = slurp(path("a/disk-1.idx"));
  for (size_t at = 0; at < index.size(); ++at) {
    std::string bad = index;
    bad[at] ^= 1;
    expect_refused("a/disk-1.idx", bad, {.key = &one}, "disk-1.idx");
  }
  // The data of an extent, the zeros of one with data, of one without, and the last bytes.
  for (const uint64_t at : {uint64_t{0}, uint64_t{4096}, kExtentBytes + 77, 3 * kExtentBytes, kDiskBytes - 1}) {
    std::string bad = image_;
    bad[at] ^= 1;
    expect_refused("a/disk-1.img", bad, {.key = &one}, "disk-1.img");
    expect_refused("a/disk-1.img", bad, {.unchecked = true}, "disk-1.img");
  }
  for (const std::string& bad : {std::string(), image_.substr(0, kExtentBytes), image_ + "x"})
    expect_refused("a/disk-1.img", bad, {.key = &one}, "disk-1.img");
  std::filesystem::remove(path("a/disk-1.img"));
  EXPECT_NE(reading("a", {.key = &one}).find("disk-1.img"), std::string::npos);
}

TEST_F(DiskTest, WithoutTheKeyNobodyCanChangeAnImage) {
  const Key one = key(1);
  const Created made = make("a", {.key = &one});
  std::string bytes = image_;
  bytes[5] = 'y';
  spill(path("a/disk-1.img"), bytes);
  const std::string old = slurp(path("a/disk-1.idx"));
  std::vector<std::byte> index(old.size());
  std::memcpy(index.data(), old.data(), old.size());
  const uint64_t sum = xxh3_of(bytes_of(bytes).first(kExtentBytes));
  std::memcpy(index.data() + sizeof(DiskIndexHeader), &sum, sizeof(sum));
  spill(path("a/disk-1.idx"), std::string(reinterpret_cast<const char*>(index.data()), index.size()));
  Manifest manifest = made.manifest;
  manifest.disks[1].index->xxh3 = xxh3_of(index);
  const std::string text = write_manifest(manifest);
  spill(path("a/manifest.json"), text);
  const std::string seal = slurp(path("a/seal"));
  spill(path("a/seal"),
        write_seal({.digest = digest_of(bytes_of(text)), .mac = std::nullopt}) + seal.substr(seal.find("mac ")));
  EXPECT_EQ(reading("a", {.unchecked = true}), ""); // all that anybody can compute is right
  EXPECT_NE(reading("a", {.key = &one}).find("seal"), std::string::npos);
}

TEST_F(DiskTest, AManifestThatSaysTooMuchOrTooLittleOfDisksIsRefused) {
  const Created made = make("a");
  const std::string good = write_manifest(made.manifest);
  const auto said = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    const auto read = read_manifest("read", "m", text);
    return read ? "" : read.error().reason;
  };
  EXPECT_EQ(said("vm1", "vm2"), "");
  EXPECT_NE(said("\"format\": 2", "\"format\": 1").find("disks"), std::string::npos);
  EXPECT_NE(said("\"format\": 2", "\"format\": 3").find("format"), std::string::npos);
  EXPECT_NE(said("\"bytes\": 4096,\n", "\"bytes\": 0,\n").find("disks[0].bytes"), std::string::npos);
  EXPECT_NE(said("3146240", "9999999").find("disks[1].index"), std::string::npos);
  EXPECT_NE(said("disk-1.idx", "disk-0.idx").find("disks[1].index"), std::string::npos);
  EXPECT_NE(said("\"read_only\"", "\"what\": 1, \"read_only\"").find("what"), std::string::npos);
}

TEST_F(DiskTest, MergingRebasingAndPruningKeepTheImageAndCheckIt) {
  const Key one = key(1);
  const Created base = make("0", {.key = &one});
  memory.scribble(random, 4);
  make("1", {.key = &one}, "0", &base);
  const EditOptions options{.open = {.key = &one}, .write = {.key = &one}};
  ASSERT_TRUE(merge(path("1"), path("merged"), options).has_value());
  EXPECT_EQ(reading("merged", {.key = &one}), "");
  EXPECT_EQ(slurp(path("out")), image_);
  ASSERT_TRUE(rebase(path("merged"), path("0"), path("rebased"), options).has_value());
  EXPECT_EQ(reading("rebased", {.key = &one}), "");
  ASSERT_TRUE(prune(path("1"), options).has_value());
  EXPECT_EQ(reading("1", {.key = &one}), "");
  EXPECT_EQ(slurp(path("out")), image_);
  std::string bad = image_;
  bad[100] = 'y';
  spill(path("merged/disk-1.img"), bad);
  const auto refused = merge(path("merged"), path("never"), options);
  ASSERT_FALSE(refused.has_value());
  EXPECT_NE(refused.error().message().find("merged/disk-1.img: extent 0"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(path("never")));
}

// The end of a VM waits for whoever copies its disks.
TEST_F(DiskTest, ACopyEndsAtTheFirstPieceAfterAWordThatItIsNotToGoOn) {
  const auto before = entries();
  Fickle files;
  for (const uint64_t after : {0U, 1U, 3U}) {
    uint64_t asked = 0;
    CreateOptions options{.threads = 1, .files = &files};
    options.go_on = [&]() -> std::expected<void, vmm::Error> {
      if (asked++ < after)
        return {};
      return std::unexpected(vmm::Error{"snapshot create", "vm1", "the VM ended meanwhile"});
    };
    const auto source = memory.source();
    const auto made = create(path("a"), contents, *source, options);
    ASSERT_FALSE(made.has_value());
    EXPECT_EQ(made.error().reason, "the VM ended meanwhile");
    EXPECT_EQ(asked, after + 1); // of four pieces of the disk
    EXPECT_EQ(entries(), before);
  }
}

TEST_F(DiskTest, NoCallThatFailsLeavesAnythingBehind) {
  const auto before = entries();
  Fickle files;
  for (files.fail_at = 0; files.fail_at < 1000; ++files.fail_at) {
    files.calls = 0;
    const auto source = memory.source();
    const auto made = create(path("a"), contents, *source, {.files = &files});
    if (files.calls <= files.fail_at) // all went through
      break;
    if (!made) {
      EXPECT_EQ(entries(), before) << files.fail_at;
      continue;
    }
    EXPECT_EQ(reading("a"), "") << files.fail_at; // a call whose failure does not matter
    std::filesystem::remove_all(path("a"));
    std::filesystem::remove(path("out"));
  }
  EXPECT_GT(files.fail_at, 20U);
  EXPECT_EQ(reading("a"), "");
}

TEST_F(DiskTest, AnImageThatIsShorterThanTheDiskIsRefusedByName) {
  std::filesystem::resize_file(path("image"), kExtentBytes);
  const auto source = memory.source();
  Fickle files;
  const auto made = create(path("a"), contents, *source, {.files = &files});
  ASSERT_FALSE(made.has_value());
  EXPECT_NE(made.error().message().find("image: has 1048576 bytes"), std::string::npos) << made.error().message();
}

TEST_F(DiskTest, APlaceIsNeverOverwrittenAndNothingIsLeftOfATry) {
  make("a");
  spill(path("there"), "mine");
  const auto snapshot = Snapshot::open(path("a"), {});
  ASSERT_TRUE(snapshot.has_value());
  const auto before = entries();
  for (const bool by_name : {false, true}) { // the guest never got it
    PlacedDisks placed;
    EXPECT_FALSE(place_disks("restore", *snapshot, {.places = {{1, path("there")}}}, placed).has_value());
    EXPECT_TRUE(place_disks("restore", *snapshot, {.places = {{1, path("new")}}}, placed).has_value());
    EXPECT_TRUE(std::filesystem::exists(path("new")));
    if (by_name) {
      placed.remove();
      EXPECT_EQ(entries(), before);
      spill(path("new"), "another's");
    }
  }
  EXPECT_EQ(slurp(path("new")), "another's");
  std::filesystem::remove(path("new"));
  EXPECT_EQ(slurp(path("there")), "mine");
  EXPECT_EQ(entries(), before);
}

TEST_F(DiskTest, ChoicesThatCannotBeAreNamed) {
  make("a");
  const auto snapshot = Snapshot::open(path("a"), {});
  ASSERT_TRUE(snapshot.has_value());
  vmm::VmConfig config;
  config.disks = {{"/elsewhere", true}, {path("image"), false}};
  const auto choose = [&](const DiskChoices& choices) {
    return choose_disks("restore", *snapshot, choices, config);
  };
  EXPECT_NE(choose({}).error().reason.find("disk 1"), std::string::npos);
  EXPECT_EQ(choose({.places = {{2, "x"}}}).error().status, vmm::Status::kUsage);
  ASSERT_TRUE(choose({.places = {{0, "/zero"}, {1, "/one"}}}).has_value());
  EXPECT_EQ(config.disks[0].path + config.disks[1].path, "/zero/one");
  config.disks.pop_back();
  EXPECT_EQ(choose({.places = {{0, "/zero"}}}).error().status, vmm::Status::kRefused);
}

TEST_F(DiskTest, AFileOfTheHostThatASnapshotOnlyNamesIsTakenWhereSomebodySaysSo) {
  contents.disks.pop_back();
  const auto choose = [&](const std::string& snapshot, const std::string& file, const DiskChoices& choices,
                          const Key* with) {
    const auto opened = Snapshot::open(path(snapshot), {.key = with});
    EXPECT_TRUE(opened.has_value());
    vmm::VmConfig config;
    config.disks = {{file, true}};
    const auto chosen = choose_disks("restore", *opened, choices, config);
    return chosen ? "" : chosen.error().message();
  };
  const std::string stranger = "wants " + path("image") + " as disk 0, and nothing in it says";
  const Key one = key(1);
  make("known");
  contents.disks[0].disk.changed_unix_ns = 0;
  make("unknown");
  make("sealed", {.key = &one});
  contents.disks.clear();
  make("first-format");
  EXPECT_EQ(choose("known", path("image"), {}, nullptr), "");
  EXPECT_NE(choose("known", "/dev/null", {}, nullptr), ""); // which is not even opened
  for (const char* const snapshot : {"unknown", "first-format"}) {
    EXPECT_NE(choose(snapshot, path("image"), {}, nullptr).find(stranger), std::string::npos);
    EXPECT_EQ(choose(snapshot, path("image"), {.places = {{0, "mine"}}}, nullptr), "");
    EXPECT_EQ(choose(snapshot, path("image"), {.places = {}, .as_they_are = true}, nullptr), "");
  }
  EXPECT_EQ(choose("sealed", "/dev/null", {}, &one), "");
}

} // namespace
} // namespace stopvisor::snapshot
