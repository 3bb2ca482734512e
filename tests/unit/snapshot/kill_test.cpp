// SPDX-License-Identifier: Apache-2.0
// A process that writes one snapshot after the other is killed at any moment: what it was told was done is there,
// what it was at is there wholly or not at all, and the next writer tidies up.
#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <string_view>
#include <thread>

#include "tests/sanitized.h"
#include "tests/unit/snapshot/failing_files.h"
#include "tools/snapshot/incremental.h"

namespace stopvisor::snapshot {
namespace {

using namespace testing;

constexpr uint64_t kMostInALife = 12;

// What the process that is killed leaves behind besides snapshots.
struct Journal {
  std::atomic<uint64_t> begun = 0;
  std::atomic<uint64_t> done = 0;
};

class SharedJournal {
public:
  SharedJournal()
      : mapped_(::mmap(nullptr, sizeof(Journal), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) {
    EXPECT_NE(mapped_, MAP_FAILED);
  }
  ~SharedJournal() { ::munmap(mapped_, sizeof(Journal)); }
  SharedJournal(const SharedJournal&) = delete;
  SharedJournal& operator=(const SharedJournal&) = delete;
  void clear() { journal_ = new (mapped_) Journal; }
  Journal* operator->() { return journal_; }

private:
  void* mapped_;
  Journal* journal_ = nullptr;
};

class KillTest : public SnapshotTest {
protected:
  // Two pages of three are of their generation, which each has in it: a mix of two is no generation's.
  static void stamp(Memory& to, uint64_t generation) {
    const auto fill = [&](std::vector<std::byte>& bytes) {
      for (uint64_t page = 0; page < bytes.size() / kPageBytes; ++page)
        if (page % 3 != 0)
          for (const uint64_t at : {uint64_t{0}, kPageBytes - sizeof(generation)})
            std::memcpy(bytes.data() + page * kPageBytes + at, &generation, sizeof(generation));
    };
    fill(to.low);
    fill(to.high);
  }
  static std::string name_of(uint64_t generation) { return "s" + std::to_string(generation); }

  // One snapshot more, of a kind that depends on its number, and "latest", which is put in the place of the last.
  [[nodiscard]] bool add(uint64_t generation) {
    stamp(memory, generation);
    CreateOptions options;
    options.encoding = generation % 3 == 0 ? Encoding::kZstd : Encoding::kRaw;
    const auto all = memory.source();
    CreateOptions latest = options;
    latest.replace = generation > 1;
    if (!create(path("latest"), contents, *all, latest))
      return false;
    if (generation % 4 == 1)
      return create(path(name_of(generation)), contents, *all, options).has_value();
    const auto base = Base::open("create", path(name_of(generation - 1)), nullptr, "vm1", all->regions());
    if (!base)
      return false;
    options.parent = base->link();
    options.confirm = [&] { return base->confirm(); };
    return create(path(name_of(generation)), contents, *difference(base->chain(), *all), options).has_value();
  }
  [[noreturn]] void live(SharedJournal& journal) {
    for (uint64_t generation = 1; generation <= kMostInALife; ++generation) {
      journal->begun = generation;
      if (!add(generation))
        ::_exit(1);
      journal->done = generation;
    }
    for (;;)
      ::pause();
  }
  void expect_generation(const std::string& name, uint64_t generation) {
    Memory back;
    EXPECT_EQ(read_back(path(name), back), "");
    stamp(memory, generation);
    EXPECT_TRUE(back.same(memory)) << name << " is not of generation " << generation;
  }
  void expect_all_that_was_done(uint64_t begun, uint64_t done) {
    for (uint64_t generation = 1; generation <= begun; ++generation)
      if (generation <= done || std::filesystem::exists(path(name_of(generation))))
        expect_generation(name_of(generation), generation);
    uint64_t latest = 0;
    if (done == 0 && !std::filesystem::exists(path("latest")))
      return;
    Memory back;
    EXPECT_EQ(read_back(path("latest"), back), "");
    std::memcpy(&latest, back.low.data() + kPageBytes, sizeof(latest));
    EXPECT_TRUE(latest == done || latest == begun) << latest;
    expect_generation("latest", latest);
  }

  // Whether it has ended by itself. It stays to be waited for.
  static bool has_ended(pid_t child) {
    siginfo_t about{};
    return ::waitid(P_PID, static_cast<id_t>(child), &about, WEXITED | WNOHANG | WNOWAIT) != 0 || about.si_pid != 0;
  }
  static int rounds() {
    const char* const mode = std::getenv("STOPVISOR_TEST_MODE"); // NOLINT(concurrency-mt-unsafe): nobody sets it
    if (mode != nullptr && std::string_view(mode) == "long")
      return 200;
    return kAddressSanitizer ? 5 : 20;
  }
};

TEST_F(KillTest, KilledAtAnyMomentItLeavesWhatWasDoneAndNoHalf) {
  const auto seed = static_cast<uint32_t>(std::random_device{}());
  std::printf("seed %u\n", seed);
  std::mt19937 moments(seed);
  SharedJournal journal;
  uint64_t most = 0; // microseconds in which a life writes all it has
  for (int round = 0; round <= rounds(); ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    journal.clear();
    const auto begin = std::chrono::steady_clock::now();
    const pid_t child = ::fork();
    if (child == 0)
      live(journal);
    const auto passed = [&] {
      using std::chrono::microseconds;
      return static_cast<uint64_t>(
          std::chrono::duration_cast<microseconds>(std::chrono::steady_clock::now() - begin).count());
    };
    const uint64_t moment = most == 0 ? UINT64_MAX : moments() % most; // the first finds out how long they take
    // The moment is the subject, not a synchronisation.
    while (passed() < moment && journal->done < kMostInALife && !has_ended(child))
      std::this_thread::yield();
    most = std::max(most, most == 0 ? passed() : 0);
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "it failed before it was killed";
    expect_all_that_was_done(journal->begun, journal->done);
    make("after"); // removes what the dead one left
    for (const std::string& name : entries()) {
      EXPECT_FALSE(name.starts_with('.')) << name;
      std::filesystem::remove_all(path(name));
    }
    ASSERT_FALSE(HasFailure());
  }
}

} // namespace
} // namespace stopvisor::snapshot
