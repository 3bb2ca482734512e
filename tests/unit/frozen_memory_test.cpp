// SPDX-License-Identifier: Apache-2.0
// Memory as of an instant, while others write to it before, in, between and after whatever is done to it.
#include "vmm/frozen_memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <semaphore>

#include "vmm/guest_memory.h"

namespace stopvisor::vmm {
namespace {

constexpr uint64_t kExtent = FrozenMemory::kExtentBytes;
constexpr uint64_t kBytes = 5 * kExtent + 3 * kPageBytes; // neither whole extents nor whole clusters
constexpr uint64_t kHugeBytes = 6 * kExtent;
constexpr uint64_t kCluster = 64 << 10;

struct Kind {
  MemoryBacking backing;
  bool populate; // as before Linux 6.4
};

// The generation goes into every word of a page, so that no mix of two of them goes unseen.
class Frozen : public ::testing::TestWithParam<Kind> {
protected:
  void SetUp() override {
    if (const auto allowed = Userfault::open("test"); !allowed)
      GTEST_SKIP() << allowed.error().message();
    const bool huge = GetParam().backing == MemoryBacking::kHugetlb;
    auto memory = GuestMemory::create(huge ? kHugeBytes : kBytes, GetParam().backing);
    if (!memory && huge)
      GTEST_SKIP() << memory.error().message();
    ASSERT_TRUE(memory.has_value()) << memory.error().message();
    memory_.emplace(std::move(*memory));
    options_.populate = GetParam().populate;
    options_.cluster_bytes = huge ? 2 << 20 : kCluster;
    for (uint64_t page = 0; page < pages(); page += 2) // the others are not there yet
      write(page, 1);
  }

  [[nodiscard]] std::span<std::byte> bytes() const { return memory_->range(Gpa{0}, memory_->size_bytes()); }
  [[nodiscard]] uint64_t pages() const { return memory_->size_bytes() / kPageBytes; }
  [[nodiscard]] bool huge() const { return options_.cluster_bytes > kExtent; }

  void write(uint64_t page, uint64_t generation) const {
    auto* const words = reinterpret_cast<uint64_t*>(bytes().data() + page * kPageBytes);
    for (uint64_t word = 0; word < kPageBytes / sizeof(uint64_t); ++word)
      __atomic_store_n(words + word, page << 20 ^ generation ^ word << 50, __ATOMIC_RELAXED);
  }
  void create() {
    auto frozen = FrozenMemory::create(bytes(), options_);
    ASSERT_TRUE(frozen.has_value()) << frozen.error().message();
    frozen_ = std::move(*frozen);
  }
  void begin() {
    create();
    ASSERT_TRUE(frozen_->arm().has_value());
  }
  // What must be copied then.
  void freeze() {
    ASSERT_TRUE(frozen_->freeze().has_value());
    instant_.resize(bytes().size());
    for (uint64_t at = 0; at < bytes().size(); at += sizeof(uint64_t)) { // a writer may stand in its store already
      const uint64_t word = __atomic_load_n(reinterpret_cast<uint64_t*>(bytes().data() + at), __ATOMIC_RELAXED);
      std::memcpy(instant_.data() + at, &word, sizeof(word));
    }
  }
  [[nodiscard]] bool copy(uint64_t extent) {
    const uint64_t offset = extent * kExtent;
    const uint64_t length = std::min(kExtent, bytes().size() - offset);
    std::vector<std::byte> copied(length);
    const auto done = frozen_->copy(offset, copied);
    EXPECT_TRUE(done.has_value()) << done.error().message();
    return done && std::memcmp(copied.data(), instant_.data() + offset, length) == 0;
  }
  [[nodiscard]] uint64_t extents() const { return (bytes().size() + kExtent - 1) / kExtent; }
  void copy_from(uint64_t first) {
    for (uint64_t extent = first; extent < extents(); ++extent)
      EXPECT_TRUE(copy(extent)) << extent;
  }
  void write_all(uint64_t generation) const {
    for (uint64_t page = 0; page < pages(); ++page)
      write(page, generation);
  }

  std::optional<GuestMemory> memory_;
  FreezeOptions options_;
  std::unique_ptr<FrozenMemory> frozen_;
  std::vector<std::byte> instant_;
};

TEST_P(Frozen, IsWhatWasThereInTheInstantWhileAllIsRewritten) {
  std::atomic<bool> over{false};
  std::atomic<bool> held{false}; // as by a stop
  std::counting_semaphore<> out(0), in(0);
  std::vector<std::thread> writers;
  for (uint64_t writer = 0; writer < 2; ++writer)
    writers.emplace_back([&, writer] {
      for (uint64_t generation = 2; !over; ++generation)
        for (uint64_t page = writer; page < pages(); page += 2) {
          if (held) {
            out.release();
            in.acquire();
          }
          write(page, generation);
        }
    });
  for (int round = 0; round < 10; ++round) {
    begin();
    held = true;
    out.acquire();
    out.acquire();
    freeze();
    held = false;
    in.release(2);
    copy_from(0);
    frozen_.reset();
  }
  over = true;
  for (std::thread& writer : writers)
    writer.join();
}

TEST_P(Frozen, HasWhatWasWrittenWhileItWasProtected) {
  options_.at = [&](FreezePoint point, uint64_t offset) {
    if (point == FreezePoint::kArmed)
      for (uint64_t page = 0; page < 40; page += 3)
        write(std::min(offset / kPageBytes + page * 12, pages() - 1), 2);
  };
  begin();
  write(1, 3);
  freeze();
  EXPECT_GT(frozen_->figures().early_writes, 0U);
  write_all(4);
  copy_from(0);
}

TEST_P(Frozen, DoesNotHaveWhatWasWrittenBetweenTwoStepsOfACopy) {
  options_.at = [&](FreezePoint point, uint64_t offset) {
    if (point == FreezePoint::kCopied || point == FreezePoint::kFinished)
      for (uint64_t page = offset / kPageBytes; page < std::min(pages(), (offset + kExtent) / kPageBytes);
           page += 7)
        write(page, 5);
  };
  begin();
  freeze();
  for (uint64_t extent = extents(); extent-- > 0;) // the other way round
    EXPECT_TRUE(copy(extent)) << extent;
}

// A writer waits whose service begins before a step, and goes on after it.
TEST_P(Frozen, ServesAWriterWhoCameBeforeTheInstantAsOfAfterIt) {
  std::counting_semaphore<> waits(0), go_on(0);
  std::atomic<bool> armed{false};
  options_.at = [&](FreezePoint point, uint64_t) {
    if (point == FreezePoint::kFault && armed.exchange(false)) {
      waits.release();
      go_on.acquire();
    }
  };
  begin();
  armed = true;
  std::thread writer([&] { write(4, 9); });
  waits.acquire();
  freeze();
  go_on.release();
  writer.join();
  EXPECT_EQ(frozen_->figures().preserved_bytes, options_.cluster_bytes);
  copy_from(0);
}

TEST_P(Frozen, LetsAWriterGoWhoseExtentWasCopiedMeanwhile) {
  std::counting_semaphore<> waits(0), go_on(0);
  options_.at = [&](FreezePoint point, uint64_t) {
    if (point == FreezePoint::kFault) {
      waits.release();
      go_on.acquire();
    }
  };
  begin();
  freeze();
  std::thread writer([&] { write(2, 9); });
  waits.acquire();
  EXPECT_TRUE(copy(0));
  go_on.release();
  if (huge()) // the other half of its page is still to be copied: it is put aside
    writer.join();
  EXPECT_TRUE(copy(1));
  if (!huge()) {
    writer.join();
    EXPECT_EQ(frozen_->figures().preserved_bytes, 0U);
  }
  options_.at = {};
  copy_from(2);
}

TEST_P(Frozen, MakesAWriterWaitWhereThereIsNoRoom) {
  std::counting_semaphore<> throttled(0);
  options_.side_limit_bytes = options_.cluster_bytes;
  options_.at = [&](FreezePoint point, uint64_t) {
    if (point == FreezePoint::kThrottled)
      throttled.release();
  };
  begin();
  freeze();
  std::atomic<int> written{0};
  const uint64_t far = 4 * kExtent / kPageBytes; // what is copied first makes room, and is not this one
  std::thread writer([&] {
    write(0, 7);
    ++written;
    write(far, 7);
    ++written;
  });
  throttled.acquire();
  EXPECT_EQ(written, 1);
  EXPECT_TRUE(copy(0));
  if (huge()) { // else there is no room yet
    EXPECT_TRUE(copy(1));
  }
  writer.join();
  const FreezeFigures figures = frozen_->figures();
  EXPECT_EQ(figures.throttled, 1U);
  EXPECT_EQ(figures.side_peak_bytes, options_.cluster_bytes);
  EXPECT_GT(figures.throttled_for.count(), 0);
  copy_from(huge() ? 2 : 1);
}

TEST_P(Frozen, TellsWhyItIsGoneAndLetsEverybodyWrite) {
  std::counting_semaphore<> throttled(0);
  options_.side_limit_bytes = options_.cluster_bytes;
  options_.at = [&](FreezePoint point, uint64_t) {
    if (point == FreezePoint::kThrottled)
      throttled.release();
  };
  begin();
  freeze();
  EXPECT_TRUE(copy(0));
  std::thread writer([&] { write_all(7); });
  throttled.acquire();
  frozen_->fail("the guest reset itself");
  writer.join();
  ASSERT_TRUE(memory_->clear().has_value());
  write_all(8);
  std::vector<std::byte> to(kExtent);
  const auto copied = frozen_->copy(kExtent, to);
  ASSERT_FALSE(copied.has_value());
  EXPECT_EQ(copied.error().reason, "the guest reset itself");
}

TEST_P(Frozen, HasNoInstantWhereItFailedBefore) {
  begin();
  frozen_->fail("the guest reset itself");
  write_all(2);
  const auto frozen = frozen_->freeze();
  ASSERT_FALSE(frozen.has_value());
  EXPECT_EQ(frozen.error().reason, "the guest reset itself");
}

TEST_P(Frozen, LetsAWriterWhoWaitsGoWhenItEnds) {
  for (const bool after : {false, true}) {
    std::counting_semaphore<> throttled(0);
    options_.side_limit_bytes = options_.cluster_bytes;
    options_.at = [&](FreezePoint point, uint64_t) {
      if (point == FreezePoint::kThrottled || (point == FreezePoint::kServed && !after))
        throttled.release();
    };
    begin();
    if (after)
      freeze();
    std::thread writer([&] {
      write(0, 7);
      write(pages() - 1, 7);
    });
    throttled.acquire();
    if (!after)
      throttled.acquire();
    frozen_.reset();
    writer.join();
  }
  write_all(9);
}

TEST_P(Frozen, IsWrittenAsBeforeWhereItIsCancelledWhileItIsProtected) {
  std::stop_source stop;
  options_.stop = stop.get_token();
  options_.at = [&](FreezePoint, uint64_t) { stop.request_stop(); };
  create();
  const auto armed = frozen_->arm();
  ASSERT_FALSE(armed.has_value());
  EXPECT_EQ(armed.error().reason, "was cancelled");
  frozen_.reset();
  write_all(3);
}

TEST_P(Frozen, HoldsForWritesOfTheKernelToo) {
  begin();
  freeze();
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const std::vector<char> text(3 * kPageBytes, 'k');
  ASSERT_EQ(::write(ends[1], text.data(), text.size()), static_cast<ssize_t>(text.size()));
  // By its number: ThreadSanitizer would take read() for a write that nobody orders. The kernel does.
  EXPECT_EQ(::syscall(SYS_read, ends[0], bytes().data() + 2 * kExtent - kPageBytes, text.size()),
            static_cast<long>(text.size()));
  ::close(ends[0]);
  ::close(ends[1]);
  copy_from(0);
  EXPECT_EQ(static_cast<char>(bytes()[2 * kExtent]), 'k');
}

INSTANTIATE_TEST_SUITE_P(
    Memory, Frozen,
    ::testing::Values(Kind{MemoryBacking::kAnonymous, false}, Kind{MemoryBacking::kAnonymous, true},
                      Kind{MemoryBacking::kMemfd, false}, Kind{MemoryBacking::kHugetlb, false}),
    [](const auto& kind) {
      return std::string(name_of(kind.param.backing)) + (kind.param.populate ? "Populated" : "");
    });

TEST(FrozenMemory, IsRefusedWithWhatToAllowWhereThisProcessMayNot) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if (::geteuid() == 0 && ::setresuid(65534, 65534, 65534) != 0)
      ::_exit(77);
    const auto opened = Userfault::open("snapshot create");
    if (opened)
      ::_exit(77); // whoever we are may
    const bool clear = opened.error().status == Status::kRefused &&
                       opened.error().reason.find("vm.unprivileged_userfaultfd=1") != std::string::npos;
    ::_exit(clear ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
    GTEST_SKIP() << "every process may watch writes here";
  EXPECT_EQ(status, 0);
}

} // namespace
} // namespace stopvisor::vmm
