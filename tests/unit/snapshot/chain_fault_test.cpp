// SPDX-License-Identifier: Apache-2.0
// Every call to the file system fails once, and is once the last, in all that makes one snapshot out of others.
#include <cerrno>
#include <set>

#include "tests/unit/snapshot/failing_files.h"
#include "tools/snapshot/chain_edit.h"
#include "tools/snapshot/incremental.h"

namespace stopvisor::snapshot {
namespace {

using namespace testing;

class ChainFaultTest : public SnapshotTest {
protected:
  // Few pages, and so few calls: each call fails in a run of its own.
  static constexpr size_t kPages = 6;
  ChainFaultTest() { begin_anew(); }
  void begin_anew() {
    memory = Memory();
    random.seed(20261123);
    memory.scribble(random, 2 * kPages);
  }

  using Operation = std::function<bool(FileSystem&)>; // RETURNS: whether it was done

  // Lets each call of an operation that makes "new" fail. The chain that is there must not suffer.
  void fail_each_call(const Operation& make_new, const Memory& newest, const Memory& made,
                      const OpenOptions& options) {
    const std::vector<std::string> old = entries();
    std::set<Call> failed;
    for (const int error : {EIO, kDies})
      for (int at = 0;; ++at) {
        SCOPED_TRACE("call " + std::to_string(at) + ", error " + std::to_string(error));
        FailingFiles files(at, error);
        const std::optional<bool> done =
            error == kDies ? in_child([&] { return make_new(files); }) : std::optional(make_new(files));
        if (files.failed())
          failed.insert(files.where());
        const bool is_there = std::filesystem::exists(path("new"));
        EXPECT_EQ(is_there, done.value_or(is_there));
        if (is_there)
          expect_memory("new", made, options);
        expect_memory(old.back(), newest, options); // and so all below it
        std::filesystem::remove_all(path("new"));
        make("other"); // removes what the dead one left
        std::filesystem::remove_all(path("other"));
        ASSERT_EQ(entries(), old);
        if (error == kDies ? done.has_value() : !files.failed())
          break;
      }
    for (const Call call : {Call::kMakeDirectory, Call::kCreate, Call::kOpen, Call::kLock, Call::kWrite,
                            Call::kSync, Call::kRename, Call::kList})
      EXPECT_TRUE(failed.contains(call)) << static_cast<int>(call);
  }
  void expect_memory(const std::string& name, const Memory& expected, const OpenOptions& options = {}) const {
    Memory back;
    EXPECT_EQ(read_back(path(name), back, options), "");
    EXPECT_TRUE(back.same(expected));
  }
  [[nodiscard]] static EditOptions edit_options(FileSystem& files, CreateOptions write) {
    write.files = &files;
    write.threads = 1; // so that call n is always the same one
    return {.open = {.key = write.key}, .write = std::move(write)};
  }
};

TEST_F(ChainFaultTest, NoCallThatFailsInAnIncrementalSnapshotHurtsAnything) {
  const auto history = make_chain(1, {}, kPages);
  memory.scribble(random, kPages);
  fail_each_call(
      [&](FileSystem& files) {
        const auto all = memory.source();
        const auto base = Base::open("create", path("1"), nullptr, "vm1", all->regions());
        CreateOptions options = edit_options(files, {}).write;
        options.parent = base->link();
        options.confirm = [&] { return base->confirm(); };
        return create(path("new"), contents, *difference(base->chain(), *all), options).has_value();
      },
      history.back(), memory, {});
}

TEST_F(ChainFaultTest, NoCallThatFailsInAMergeHurtsAnything) {
  const Key one = key(1);
  const auto history = make_chain(2, {.encoding = Encoding::kZstd, .key = &one}, kPages);
  fail_each_call(
      [&](FileSystem& files) {
        return merge(path("2"), path("new"), edit_options(files, {.key = &one})).has_value();
      },
      history.back(), history[2], {.key = &one});
}

TEST_F(ChainFaultTest, NoCallThatFailsInARebaseHurtsAnything) {
  const auto history = make_chain(2, {}, kPages);
  fail_each_call(
      [&](FileSystem& files) {
        return rebase(path("2"), path("0"), path("new"), edit_options(files, {.encoding = Encoding::kZstd}))
            .has_value();
      },
      history.back(), history[2], {});
}

TEST_F(ChainFaultTest, NoCallThatFailsHurtsASnapshotThatIsPruned) {
  std::set<Call> failed;
  for (const int error : {EIO, kDies})
    for (int at = 0;; ++at) {
      SCOPED_TRACE("call " + std::to_string(at) + ", error " + std::to_string(error));
      begin_anew(); // call n is the same one then
      const auto history = make_chain(1, {}, kPages);
      FailingFiles files(at, error);
      const auto pruning = [&] { return prune(path("1"), edit_options(files, {})).has_value(); };
      const std::optional<bool> done = error == kDies ? in_child(pruning) : std::optional(pruning());
      if (files.failed())
        failed.insert(files.where());
      expect_memory("1", history[1]);
      make("other");
      for (const std::string& name : entries()) // each by its chain, where that is there: nothing is half removed
        EXPECT_TRUE(name == "other" || Snapshot::open(path(name), {}).has_value()) << name;
      for (const std::string& name : entries())
        std::filesystem::remove_all(path(name));
      if (error == kDies ? done.has_value() : !files.failed())
        break;
    }
  for (const Call call : {Call::kWrite, Call::kSync, Call::kExchange, Call::kRename, Call::kRemove})
    EXPECT_TRUE(failed.contains(call)) << static_cast<int>(call);
}

} // namespace
} // namespace stopvisor::snapshot
