// SPDX-License-Identifier: Apache-2.0
// A real file system of every size from far too small to large enough: an error that says so, and nothing is left.
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>

#include <cerrno>

#include "tests/unit/snapshot/failing_files.h"
#include "tools/snapshot/chain_edit.h"

namespace stopvisor::snapshot {
namespace {

using namespace testing;

bool write_line(const char* path, const std::string& line) {
  const vmm::UniqueFd file(::open(path, O_WRONLY | O_CLOEXEC));
  return file && ::write(file.get(), line.data(), line.size()) == static_cast<ssize_t>(line.size());
}

// Whether this process may mount now; what it mounts nobody else sees. Needs no rights where the host has user
// namespaces.
bool may_mount() {
  const std::string user = std::to_string(::getuid());
  if (::unshare(CLONE_NEWNS) != 0) {
    if (::unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0 || !write_line("/proc/self/uid_map", "0 " + user + " 1"))
      return false;
  }
  return ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
}

class FullDiskTest : public SnapshotTest {
protected:
  enum Outcome : int { kGood, kBad, kNoMounts };

  // Does `work` in a process that has a small file system of its own at "small".
  void on_small_disk(const std::function<void()>& work) {
    std::filesystem::create_directory(path("small"));
    const pid_t child = ::fork();
    if (child == 0) {
      if (!may_mount() || ::mount("small", path("small").c_str(), "tmpfs", 0, "size=64k") != 0)
        ::_exit(kNoMounts);
      work();
      ::_exit(HasFailure() ? kBad : kGood);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status));
    if (WEXITSTATUS(status) == kNoMounts)
      GTEST_SKIP() << "nobody may mount a file system here";
    EXPECT_EQ(WEXITSTATUS(status), kGood);
  }
  void resize(uint64_t bytes) const {
    const std::string size = "size=" + std::to_string(bytes);
    ASSERT_EQ(::mount("small", path("small").c_str(), "tmpfs", MS_REMOUNT, size.c_str()), 0);
  }
  [[nodiscard]] std::vector<std::string> names_in(const std::string& folder) const {
    return FileSystem::real().list(path(folder)).value_or(std::vector<std::string>{"?"});
  }
};

TEST_F(FullDiskTest, TooSmallADiskIsAnErrorAndLeavesNothing) {
  on_small_disk([&] {
    const Key one = key(1);
    for (const Encoding encoding : {Encoding::kRaw, Encoding::kZstd}) {
      int full = 0;
      for (uint64_t size = 64 << 10;; size += 32 << 10) {
        SCOPED_TRACE(size);
        resize(size);
        const auto source = memory.source();
        const auto made =
            create(path("small/a"), contents, *source, {.encoding = encoding, .level = -50, .key = &one});
        if (made) {
          Memory back;
          EXPECT_EQ(read_back(path("small/a"), back, {.key = &one}), "");
          EXPECT_TRUE(back.same(memory));
          std::filesystem::remove_all(path("small/a"));
          break;
        }
        ++full;
        EXPECT_NE(made.error().reason.find("No space left on device"), std::string::npos) << made.error().message();
        ASSERT_TRUE(names_in("small").empty());
        ASSERT_LT(size, 64 << 20);
      }
      EXPECT_GT(full, 2);
    }
  });
}

TEST_F(FullDiskTest, APrunedSnapshotThatFindsNoRoomStaysAsItIs) {
  const auto history = make_chain(2);
  on_small_disk([&] {
    resize(64 << 20);
    for (const char* const name : {"0", "1", "2"})
      std::filesystem::copy(path(name), path(std::string("small/") + name));
    const auto used = [&] {
      const auto space = std::filesystem::space(path("small"));
      return space.capacity - space.free;
    };
    int full = 0;
    for (uint64_t size = used();; size += 96 << 10) {
      SCOPED_TRACE(size);
      resize(size);
      const auto pruned = prune(path("small/2"), {});
      Memory back;
      EXPECT_EQ(read_back(path("small/2"), back), "");
      EXPECT_TRUE(back.same(history[2]));
      if (pruned)
        break;
      ++full;
      EXPECT_NE(pruned.error().reason.find("No space left on device"), std::string::npos);
      ASSERT_EQ(names_in("small"), (std::vector<std::string>{"0", "1", "2"}));
      ASSERT_LT(size, 64 << 20);
    }
    EXPECT_GT(full, 5);
    EXPECT_EQ(names_in("small"), std::vector<std::string>{"2"});
  });
}

} // namespace
} // namespace stopvisor::snapshot
