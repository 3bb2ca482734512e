// SPDX-License-Identifier: Apache-2.0
// The reader in another language, made from the reference alone, takes what we send, and nothing else.
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iterator>

#include "tests/unit/migrate/links.h"
#include "tools/migrate/messages.h"
#include "tools/migrate/page_batch.h"

namespace stopvisor::migrate {
namespace {

using namespace testing;

// All that a source can say, as it is recorded. `tally`: of it.
Bytes recording(FrameTally* tally = nullptr) {
  Pair pair;
  FrameWriter writer(*pair.one);
  const auto say = [&](FrameKind kind, const Bytes& payload) { EXPECT_TRUE(writer.write(kind, payload)); };
  Hello hello;
  hello.features = kOurFeatures;
  hello.id.fill(std::byte(9));
  hello.vm = "vm1";
  hello.program = "tests";
  say(FrameKind::kHello, encode(hello));
  say(FrameKind::kAlive, {});
  MachineFacts machine;
  machine.cpus = 2;
  machine.memory = {{0, 64 * kPageBytes}};
  machine.disks = {{1 << 20, true, "/a.img"}};
  machine.requirements = {{0x400, 1, 0, pattern(30)}};
  say(FrameKind::kMachine, *encode(machine));
  const Bytes data(kPageBytes, std::byte(5));
  const Bytes zeros(kPageBytes);
  for (const int level : {0, 1}) {
    BatchWriter batch(nullptr, level);
    for (uint64_t page = 0; page < 6; ++page)
      EXPECT_TRUE(batch.add(vmm::Gpa{page * kPageBytes}, page, page < 4 ? data.data() : zeros.data()));
    const auto payload = batch.finish();
    EXPECT_TRUE(payload && writer.write(FrameKind::kPages, payload->parts, payload->flags));
  }
  say(FrameKind::kRoundEnd, encode(RoundMark{0, 12}));
  say(FrameKind::kState, *encode(StateMessage{.held = true,
                                              .links = {{0, writer.tally().frames, writer.tally().digest}},
                                              .sections = machine.requirements}));
  say(FrameKind::kWord, encode(Word::kCommit));
  say(FrameKind::kRefusal, encode(vmm::Error{"migrate", "vm1", "as a test", vmm::Status::kRefused}));
  if (tally != nullptr)
    *tally = writer.tally();
  pair.one.reset();
  Bytes all;
  for (Bytes byte(1); pair.other->read(byte);)
    all.push_back(byte.front());
  return all;
}

class DumpTest : public ::testing::Test {
protected:
  void SetUp() override {
    const char* const dump = std::getenv("MIGRATION_DUMP"); // where the tree is, set by the build
    if (dump == nullptr || std::system("python3 --version > /dev/null") != 0)
      GTEST_SKIP() << "skipped: needs MIGRATION_DUMP and python3";
    command_ = "python3 " + std::string(dump) + " " + folder_.file("stream") + " > " + folder_.file("out") +
               " 2> " + folder_.file("err");
  }
  // RETURNS: whether it took all of it.
  [[nodiscard]] bool dump(std::span<const std::byte> stream) const {
    std::ofstream(folder_.file("stream"), std::ios::binary) << text_of(stream);
    return std::system(command_.c_str()) == 0;
  }
  [[nodiscard]] std::string said(const char* where) const {
    std::ifstream file(folder_.file(where), std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  Folder folder_;
  std::string command_;
};

TEST_F(DumpTest, ListsAllThatASourceSays) {
  FrameTally tally;
  ASSERT_TRUE(dump(recording(&tally))) << said("err");
  const std::string out = said("out");
  EXPECT_EQ(tally.frames, 8U);
  constexpr std::string_view kTally = "tally: 8 frames, digest ";
  if (const size_t at = out.find(kTally); at != std::string::npos) { // only where Python knows XXH3
    EXPECT_EQ(std::stoull(out.substr(at + kTally.size()), nullptr, 16), tally.digest);
  }
  for (const char* const line :
       {"features 0x7, required 0x0, control 0, VM vm1, tests", "1  alive", "memory 0x0+0x40000",
        "/a.img (1048576 bytes, read-only), 1 sections of 30 bytes",
        "1 data, 2 zeros, 3 copies in 3 runs from 0x0, 4096 bytes\n", " bytes compressed", "round 0, 12 pages",
        "held, links 0: 5 frames, digest ", "commit", "status 3: migrate: vm1: as a test", "tally: 8 frames"})
    EXPECT_NE(out.find(line), std::string::npos) << line << " is not in\n" << out;
  EXPECT_EQ(out.find("0909"), std::string::npos) << "the id is a secret";
}

TEST_F(DumpTest, RefusesWhatIsNotWhole) {
  const Bytes all = recording();
  for (const size_t length : {size_t{1}, size_t{31}, size_t{40}, all.size() - 1}) {
    EXPECT_FALSE(dump(std::span(all).first(length))) << length;
    EXPECT_NE(said("err").find("ends in its"), std::string::npos) << said("err");
    EXPECT_EQ(said("err").find("Traceback"), std::string::npos);
  }
  Bytes other = all;
  other[4] = std::byte(99);
  EXPECT_FALSE(dump(other));
  EXPECT_NE(said("err").find("frame 0 is of kind 99"), std::string::npos);
}

TEST_F(DumpTest, ChecksSumsOrSaysThatItDoesNot) {
  Bytes all = recording();
  all.back() ^= std::byte(1); // in the text of a refusal
  if (const bool taken = dump(all); said("err").find("checksums skipped") == std::string::npos) {
    EXPECT_FALSE(taken);
    EXPECT_NE(said("err").find("is not what its checksum says"), std::string::npos);
  } else {
    EXPECT_TRUE(taken) << said("err");
    GTEST_SKIP() << "skipped: Python has no module xxhash (python3-xxhash), so that nobody but us checks the sums";
  }
}

} // namespace
} // namespace stopvisor::migrate
