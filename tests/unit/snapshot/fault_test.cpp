// SPDX-License-Identifier: Apache-2.0
// Every call to the file system fails once, or is the last, and somebody cancels: there is the old state or the
// whole new snapshot.
#include <sys/resource.h>

#include <atomic>
#include <cerrno>
#include <thread>

#include "tests/unit/snapshot/failing_files.h"

namespace stopvisor::snapshot {
namespace {

using namespace testing;

class FaultTest : public SnapshotTest {
protected:
  void expect_whole() {
    Memory back;
    EXPECT_EQ(read_back(path("a"), back), "");
    EXPECT_TRUE(back.same(memory));
  }
};

TEST_F(FaultTest, NoCallThatFailsLeavesAnythingBehind) {
  for (const int error : {ENOSPC, EIO})
    for (int at = 0;; ++at) {
      FailingFiles files(at, error);
      const auto source = memory.source();
      const auto made = create(path("a"), contents, *source, {.files = &files});
      if (!files.failed()) {
        ASSERT_TRUE(made.has_value());
        EXPECT_GT(at, 20);
        std::filesystem::remove_all(path("a"));
        break;
      }
      if (made) // the call only tidied up
        std::filesystem::remove_all(path("a"));
      EXPECT_TRUE(entries().empty()) << "call " << at;
    }
}

TEST_F(FaultTest, KilledAtAnyCallItLeavesTheOldStateOrTheNew) {
  for (int at = 0;; ++at) {
    FailingFiles files(at, kDies);
    const auto ended = in_child([&] {
      const auto source = memory.source();
      return create(path("a"), contents, *source, {.files = &files}).has_value();
    });
    if (std::filesystem::exists(path("a")))
      expect_whole();
    std::filesystem::remove_all(path("a"));
    make("b"); // removes what the dead one left
    EXPECT_EQ(entries(), std::vector<std::string>{"b"}) << "call " << at;
    std::filesystem::remove_all(path("b"));
    if (ended)
      break;
  }
}

TEST_F(FaultTest, WhatALinkNamesIsNoLeftover) {
  std::filesystem::create_directory(path("own"));
  spill(path("own/letter"), "dear");
  std::filesystem::create_directory_symlink(path("own"), path(std::string(".x") + kPartialSuffix));
  make("a");
  EXPECT_EQ(slurp(path("own/letter")), "dear");
}

TEST_F(FaultTest, AFileThatMayNotGrowIsAnErrorAndLeavesNothing) {
  const pid_t child = ::fork();
  if (child == 0) {
    (void)::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{kExtentBytes / 2, kExtentBytes / 2};
    (void)::setrlimit(RLIMIT_FSIZE, &limit);
    const auto source = memory.source();
    ::_exit(create(path("a"), contents, *source, {}).has_value() ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 1 << 8);
  EXPECT_TRUE(entries().empty());
}

// Asks for the end when its n-th extent is read.
class CancellingSource : public MemorySource {
public:
  CancellingSource(std::unique_ptr<MemorySource> source, uint64_t at) : source_(std::move(source)), at_(at) {}
  [[nodiscard]] const std::vector<Region>& regions() const override { return source_->regions(); }
  [[nodiscard]] std::expected<ExtentBytes, vmm::Error> extent(uint64_t number,
                                                              std::span<std::byte> buffer) override {
    if (number == at_)
      stop.request_stop();
    return source_->extent(number, buffer);
  }

  std::stop_source stop;

private:
  std::unique_ptr<MemorySource> source_;
  uint64_t at_;
};

TEST_F(FaultTest, CancelledAtAnyExtentItLeavesNothing) {
  for (uint64_t at = 0; at < 6; ++at) {
    CancellingSource source(memory.source(), at);
    const auto made = create(path("a"), contents, source, {.stop = source.stop.get_token()});
    ASSERT_FALSE(made.has_value());
    EXPECT_EQ(made.error().reason, "was cancelled");
    EXPECT_TRUE(entries().empty());
  }
}

TEST_F(FaultTest, OfTwoWritersOfOneNameOneWinsAndNeitherHurtsTheOther) {
  std::atomic<int> won = 0;
  {
    std::vector<std::jthread> writers;
    for (int i = 0; i < 4; ++i)
      writers.emplace_back([&] {
        const auto source = memory.source();
        won += create(path("a"), contents, *source, {}).has_value() ? 1 : 0;
      });
  }
  EXPECT_EQ(won, 1);
  EXPECT_EQ(entries(), std::vector<std::string>{"a"});
  expect_whole();
}

TEST_F(FaultTest, ASnapshotThatIsThereIsNotOverwritten) {
  make("a");
  const auto source = memory.source();
  EXPECT_EQ(create(path("a"), contents, *source, {}).error().status, vmm::Status::kRefused);
  expect_whole();
}

} // namespace
} // namespace stopvisor::snapshot
