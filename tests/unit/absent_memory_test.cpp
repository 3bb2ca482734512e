// SPDX-License-Identifier: Apache-2.0
// Memory that comes as it is touched: what is seen is what belongs there, or nothing is.
#include "vmm/absent_memory.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <semaphore>
#include <string>
#include <thread>

#include "vmm/guest_memory.h"

namespace stopvisor::vmm {
namespace {

constexpr uint64_t kBlock = 1 << 20;
constexpr uint64_t kBytes = 6 * kBlock + 3 * kPageBytes; // no whole blocks
constexpr uint64_t kHugeBytes = 6 * kBlock;
constexpr uint64_t kZeroBlock = 2;
constexpr int kSawNothing = 7;

uint64_t word_at(uint64_t offset) {
  return offset / kBlock == kZeroBlock ? 0 : offset * 0x9e3779b97f4a7c15 + 1;
}

// What belongs there can be told from the address. Tests hold a read, or make it fail.
struct Control {
  std::atomic<uint64_t> reads{0};
  std::atomic<int64_t> bad_block{-1};
  std::atomic<bool> hold{false};
  std::binary_semaphore reached{0};
  std::binary_semaphore go{0};
};

class Origin final : public MemoryOrigin {
public:
  explicit Origin(Control& control) : control_(control) {}
  [[nodiscard]] bool is_zero(uint64_t offset, uint64_t bytes) const override {
    return offset / kBlock == kZeroBlock && bytes <= kBlock;
  }
  [[nodiscard]] std::expected<void, Error> read(uint64_t offset, std::span<std::byte> to,
                                                bool /*zeros*/) const override {
    control_.reads.fetch_add(1, std::memory_order_relaxed);
    for (uint64_t at = 0; at < to.size(); at += 8) {
      const uint64_t word = word_at(offset + at);
      std::memcpy(to.data() + at, &word, 8);
    }
    if (control_.hold.exchange(false)) {
      control_.reached.release();
      control_.go.acquire();
    }
    if (static_cast<int64_t>(offset / kBlock) == control_.bad_block.load())
      return std::unexpected(Error{"restore", "file", "block is bad", Status::kRefused});
    return {};
  }

private:
  Control& control_;
};

// Until that thread of ours sleeps, in the kernel's fault handler or in whatever else it does.
void await_sleep(const std::atomic<pid_t>& thread) {
  for (char state = 'R'; state == 'R'; std::this_thread::yield()) {
    if (thread.load() == 0)
      continue;
    std::ifstream file("/proc/self/task/" + std::to_string(thread.load()) + "/stat");
    std::string text;
    if (std::getline(file, text))
      state = text[text.rfind(')') + 2];
  }
}

// How many mappings the memory is in. Those of the rest of the process are its own: a sanitizer's come as it likes.
size_t mappings(std::span<const std::byte> memory) {
  const auto begin = std::bit_cast<uintptr_t>(memory.data());
  std::ifstream file("/proc/self/maps");
  size_t found = 0;
  for (std::string line; std::getline(file, line);) {
    uintptr_t from = 0;
    uintptr_t to = 0;
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR, &from, &to) == 2)
      found += from < begin + memory.size() && to > begin ? 1U : 0U;
  }
  return found;
}

class Absent : public ::testing::TestWithParam<MemoryBacking> {
protected:
  void SetUp() override {
    if (const auto allowed = Userfault::open("test"); !allowed)
      GTEST_SKIP() << allowed.error().message();
    const bool huge = GetParam() == MemoryBacking::kHugetlb;
    auto memory = GuestMemory::create(huge ? kHugeBytes : kBytes, GetParam());
    if (!memory && huge)
      GTEST_SKIP() << memory.error().message();
    ASSERT_TRUE(memory.has_value()) << memory.error().message();
    memory_.emplace(std::move(*memory));
    options_.is_file = GetParam() != MemoryBacking::kAnonymous;
    options_.block_bytes = huge ? 2 * kBlock : kBlock;
    options_.failed = [](const Error& error) { FAIL() << error.message(); };
  }
  void begin() {
    auto absent = AbsentMemory::begin(bytes(), std::make_unique<Origin>(control_), options_);
    ASSERT_TRUE(absent.has_value()) << absent.error().message();
    absent_ = std::move(*absent);
  }
  [[nodiscard]] std::span<std::byte> bytes() const { return memory_->range(Gpa{0}, memory_->size_bytes()); }
  [[nodiscard]] uint64_t word(uint64_t offset) const {
    return __atomic_load_n(reinterpret_cast<const uint64_t*>(bytes().data() + offset), __ATOMIC_RELAXED);
  }
  void expect_all_good() const {
    for (uint64_t at = 0; at < bytes().size(); at += 8)
      ASSERT_EQ(word(at), word_at(at)) << at;
  }

  Control control_;
  AbsentOptions options_;
  std::optional<GuestMemory> memory_;
  std::unique_ptr<AbsentMemory> absent_;
};

TEST_P(Absent, NothingIsReadUntilItIsTouched) {
  begin();
  EXPECT_EQ(control_.reads.load(), 0U);
  EXPECT_EQ(absent_->absent_bytes(), bytes().size());
  EXPECT_EQ(word(kBlock + 5 * kPageBytes), word_at(kBlock + 5 * kPageBytes));
  EXPECT_EQ(control_.reads.load(), 1U);
  EXPECT_EQ(absent_->touched_blocks(), 1U);
}

TEST_P(Absent, WhatIsTouchedIsWhatBelongsThere) {
  begin();
  expect_all_good();
}

TEST_P(Absent, EveryWayToTouchSeesIt) {
  begin();
  bytes()[kBlock + 1] = std::byte(0xee); // a write to a page that is not there
  EXPECT_EQ(bytes()[kBlock + 1], std::byte(0xee));
  EXPECT_EQ(word(kBlock + 8), word_at(kBlock + 8));
  std::array<int, 2> pipe{};
  ASSERT_EQ(::pipe(pipe.data()), 0);
  const uint64_t at = 4 * kBlock + 17 * kPageBytes; // by the kernel, as KVM and disks do
  ASSERT_EQ(::write(pipe[1], bytes().data() + at, 8), 8);
  uint64_t got = 0;
  ASSERT_EQ(::read(pipe[0], &got, 8), 8);
  EXPECT_EQ(got, word_at(at));
  ::close(pipe[0]);
  ::close(pipe[1]);
}

TEST_P(Absent, PagesThatAreAskedForComeFirstAndKeepWhatTheyAreGiven) {
  begin();
  const uint64_t one = kBlock + 5 * kPageBytes;
  const uint64_t other = kBlock + 250 * kPageBytes;
  const uint64_t far = 4 * kBlock + 7 * kPageBytes;
  ASSERT_TRUE(absent_->bring({far, other + 9, one, one + 8}).has_value());
  std::memset(bytes().data() + other, 0xee, kPageBytes); // by KVM, say, before the rest of the block comes
  EXPECT_EQ(word(one), word_at(one));
  EXPECT_EQ(word(far), word_at(far));
  EXPECT_EQ(absent_->touched_blocks(), 0U);
  EXPECT_EQ(control_.reads.load(), 2U) << "a block is read once, whatever is wanted of it";
  EXPECT_EQ(word(kBlock + 8 * kPageBytes), word_at(kBlock + 8 * kPageBytes));
  ASSERT_TRUE(absent_->bring_all({}).has_value());
  EXPECT_EQ(word(other + 8), 0xeeee'eeee'eeee'eeeeU);
  for (uint64_t at = 0; at < bytes().size(); at += 8) {
    if (at / kPageBytes != other / kPageBytes) {
      ASSERT_EQ(word(at), word_at(at)) << at;
    }
  }
}

// The serving thread finds the block busy and leaves who touched it to whoever is: who brings in another page.
TEST_P(Absent, WhoTouchesABlockOfWhichAPageIsBroughtInComesOn) {
  begin();
  control_.hold = true;
  std::thread asker([&] { EXPECT_TRUE(absent_->bring({kBlock}).has_value()); });
  control_.reached.acquire();
  std::atomic<pid_t> touches{0};
  std::thread toucher([&] {
    touches = ::gettid();
    EXPECT_EQ(word(kBlock + 100 * kPageBytes), word_at(kBlock + 100 * kPageBytes));
  });
  await_sleep(touches);
  control_.go.release();
  asker.join();
  toucher.join();
  expect_all_good();
}

// The serving thread has read a block for who touched one page of it, and others touch others, there and elsewhere.
TEST_P(Absent, WhoTouchesMoreWhileABlockIsPlacedComesOn) {
  begin();
  control_.hold = true; // while they touch
  std::vector<std::thread> threads;
  std::vector<std::atomic<pid_t>> touches(8);
  for (uint64_t thread = 0; thread < touches.size(); ++thread)
    threads.emplace_back([&, thread] {
      const uint64_t at = (thread % 4 == 3 ? 4 * kBlock : kBlock) + thread * 30 * kPageBytes;
      touches[thread] = ::gettid();
      EXPECT_EQ(word(at), word_at(at)) << at;
    });
  control_.reached.acquire();
  for (const auto& thread : touches)
    await_sleep(thread);
  control_.go.release();
  for (std::thread& thread : threads)
    thread.join();
  expect_all_good();
}

// The block of zeros has a neighbour that is none: a huge page of a file's would bring zeros there as well.
TEST_P(Absent, ZerosAreTheKernelsToMakeWhereNothingElseComesWithThem) {
  begin();
  EXPECT_EQ(word(kZeroBlock * kBlock), 0U);
  EXPECT_EQ(mappings(bytes()), GetParam() == MemoryBacking::kAnonymous ? 3U : 1U);
  expect_all_good();
}

TEST_P(Absent, WhatLiesBehindTheMemoryIsRefused) {
  begin();
  const auto done = absent_->bring({0, bytes().size()});
  ASSERT_FALSE(done.has_value());
  EXPECT_NE(done.error().reason.find("ends before a page that the start needs"), std::string::npos)
      << done.error().reason;
  expect_all_good();
}

TEST_P(Absent, AllOfItIsThereWhenBringAllReturns) {
  begin();
  Progress progress;
  ASSERT_TRUE(absent_->bring_all({}, &progress).has_value());
  EXPECT_EQ(progress.done_bytes.load(), bytes().size());
  EXPECT_TRUE(absent_->over());
  EXPECT_EQ(absent_->absent_bytes(), 0U);
  expect_all_good();
  EXPECT_EQ(absent_->touched_blocks(), 0U);
}

TEST_P(Absent, OthersMayWatchTheMemoryWhenAllIsThereAndNotBefore) {
  begin();
  const auto other = Userfault::open("test");
  ASSERT_TRUE(other.has_value());
  EXPECT_EQ(other->watch(bytes()), EBUSY);
  ASSERT_TRUE(absent_->bring_all({}).has_value());
  EXPECT_EQ(other->watch(bytes()), 0);
  other->unwatch(bytes());
}

TEST_P(Absent, OneThatWasCancelledGoesOnByTouch) {
  begin();
  std::stop_source stop;
  stop.request_stop();
  const auto done = absent_->bring_all(stop.get_token());
  ASSERT_FALSE(done.has_value());
  EXPECT_EQ(done.error().reason, "was cancelled");
  expect_all_good();
  EXPECT_TRUE(absent_->bring_all({}).has_value());
}

TEST_P(Absent, SeveralMayTouchWhileAllIsBroughtIn) {
  begin();
  std::vector<std::thread> threads;
  std::atomic<uint64_t> wrong{0};
  for (uint64_t thread = 0; thread < 4; ++thread)
    threads.emplace_back([&, thread] {
      for (uint64_t page = thread; page < bytes().size() / kPageBytes; page += 4) {
        const uint64_t at = bytes().size() - (page + 1) * kPageBytes + thread * 8;
        wrong.fetch_add(word(at) == word_at(at) ? 0 : 1);
      }
    });
  EXPECT_TRUE(absent_->bring_all({}).has_value());
  for (std::thread& thread : threads)
    thread.join();
  EXPECT_EQ(wrong.load(), 0U);
  EXPECT_TRUE(absent_->over());
  expect_all_good();
}

TEST_P(Absent, WhatIsForgottenIsZeros) {
  begin();
  (void)word(0);
  absent_->forget();
  EXPECT_TRUE(absent_->over());
  EXPECT_EQ(word(3 * kBlock), 0U);
  EXPECT_EQ(word(8), word_at(8)) << "what was there stays";
  EXPECT_TRUE(absent_->bring_all({}).has_value());
  EXPECT_EQ(word(4 * kBlock), 0U);
  ASSERT_TRUE(memory_->clear().has_value());
  EXPECT_EQ(word(8), 0U);
}

// One is read while all is forgotten: it comes whole, or not at all, and not after forget().
TEST_P(Absent, ForgettingWaitsForWhatIsBeingRead) {
  begin();
  control_.hold = true;
  std::thread toucher([&] { (void)word(3 * kBlock); });
  control_.reached.acquire();
  std::atomic<bool> forgotten{false};
  std::thread forgetter([&] {
    absent_->forget();
    forgotten = true;
  });
  EXPECT_FALSE(forgotten.load());
  control_.go.release();
  forgetter.join();
  toucher.join();
  ASSERT_TRUE(memory_->clear().has_value());
  for (uint64_t at = 0; at < bytes().size(); at += kPageBytes)
    ASSERT_EQ(word(at), 0U) << at;
}

TEST_P(Absent, WhoAsksForABadBlockIsToldAndTheOthersAreGood) {
  control_.bad_block = GetParam() == MemoryBacking::kHugetlb ? 4 : 3;
  begin();
  const auto done = absent_->bring({control_.bad_block * kBlock + 77});
  ASSERT_FALSE(done.has_value());
  EXPECT_EQ(done.error().message(), "restore: file: block is bad");
  EXPECT_FALSE(absent_->bring_all({}).has_value());
  EXPECT_EQ(word(kBlock), word_at(kBlock));
  EXPECT_FALSE(absent_->over());
}

// A page of zeros, one of something, and so on, more of them than a process may have mappings.
class Striped final : public MemoryOrigin {
public:
  [[nodiscard]] bool is_zero(uint64_t offset, uint64_t /*bytes*/) const override {
    return offset / kPageBytes % 2 == 0;
  }
  [[nodiscard]] std::expected<void, Error> read(uint64_t offset, std::span<std::byte> to,
                                                bool /*zeros*/) const override {
    std::ranges::fill(to, is_zero(offset, 1) ? std::byte(0) : std::byte(1));
    return {};
  }
};

TEST(AbsentStripes, LeaveMappingsForOthers) {
  if (const auto allowed = Userfault::open("test"); !allowed)
    GTEST_SKIP() << allowed.error().message();
  constexpr uint64_t kPages = 140'000;
  for (const MemoryBacking backing : {MemoryBacking::kAnonymous, MemoryBacking::kMemfd}) {
    const auto memory = GuestMemory::create(kPages * kPageBytes, backing);
    ASSERT_TRUE(memory.has_value()) << memory.error().message();
    const std::span<std::byte> all = memory->range(Gpa{0}, memory->size_bytes());
    auto absent = AbsentMemory::begin(all, std::make_unique<Striped>(), {.block_bytes = kPageBytes, .failed = {}});
    ASSERT_TRUE(absent.has_value()) << absent.error().message();
    for (uint64_t page = 0; page < kPages; page += 2)
      ASSERT_TRUE((*absent)->bring({page * kPageBytes}).has_value()) << page;
    EXPECT_LE(mappings(all), 17'000U);
    for (uint64_t page = kPages - 1000; page < kPages; ++page)
      ASSERT_EQ(all[page * kPageBytes], std::byte(page % 2)) << page;
    (*absent)->forget();
    EXPECT_LE(mappings(all), 10U);
  }
}

// In a process of its own: it ends, with all who wait.
TEST_P(Absent, NobodySeesABadBlock) {
  control_.bad_block = GetParam() == MemoryBacking::kHugetlb ? 4 : 3;
  options_.failed = [](const Error& error) {
    ::_exit(error.message() == "restore: file: block is bad" ? kSawNothing : 1);
  };
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    auto absent = AbsentMemory::begin(bytes(), std::make_unique<Origin>(control_), options_);
    if (!absent)
      ::_exit(2);
    (void)word(kBlock); // a good one
    std::thread other([&] {
      (void)word(control_.bad_block * kBlock + 4096); // the whole block is bad
      ::_exit(3);
    });
    (void)word(control_.bad_block * kBlock);
    ::_exit(4);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), kSawNothing);
}

INSTANTIATE_TEST_SUITE_P(Backings, Absent,
                         ::testing::Values(MemoryBacking::kAnonymous, MemoryBacking::kMemfd,
                                           MemoryBacking::kHugetlb),
                         [](const auto& kind) { return std::string(name_of(kind.param)); });

} // namespace
} // namespace stopvisor::vmm
