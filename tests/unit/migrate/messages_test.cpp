// SPDX-License-Identifier: Apache-2.0
// Each message: read as it was written, and nothing else taken for one.
#include <functional>
#include <string>

#include "tests/unit/migrate/links.h"
#include "tools/migrate/messages.h"
#include "tools/migrate/texts.h"

namespace stopvisor::migrate {
namespace {

using testing::bytes_of;
using testing::pattern;

Hello hello() {
  Hello hello;
  hello.most_version = 3;
  hello.features = kOurFeatures | kFeaturePostCopy | 1ULL << 63;
  hello.required_features = kFeatureZeroRuns;
  for (size_t at = 0; at < hello.id.size(); ++at)
    hello.id[at] = static_cast<std::byte>(at * 7);
  hello.role = LinkRole::kStream;
  hello.number = 15;
  hello.vm = "vm1";
  hello.program = "stopvisor 0.1.0";
  return hello;
}

MachineFacts machine() {
  MachineFacts facts;
  facts.streams = 4;
  facts.cpus = 2;
  facts.memory = {{0, 0xc000'0000}, {0x1'0000'0000, 4096}};
  facts.disks = {{512, true, "/var/lib/bücher.img"}, {1ULL << 40, false, ""}};
  facts.requirements = {{0x100, 1, 0, pattern(7)}, {0x100, 2, 1, {}}, {77, 1, 0, pattern(300)}};
  return facts;
}

StateMessage state() {
  StateMessage message;
  message.held = true;
  message.links = {{0, 17, 0x1234'5678'9abc'def0}, {1, 0, 0}};
  message.sections = {{0x101, 1, 0, pattern(144)}, {0x400, 1, 0, {}}};
  return message;
}

// A way to read a payload: what was read, written again; or why not.
using Reader = std::function<std::expected<Bytes, vmm::Error>(std::span<const std::byte>)>;

template <class Message>
Reader reader_of(Decoded<Message> (*decode)(std::string_view, std::span<const std::byte>)) {
  return [decode](std::span<const std::byte> payload) -> std::expected<Bytes, vmm::Error> {
    auto message = decode("test", payload);
    if (!message)
      return std::unexpected(std::move(message.error()));
    return encode(*message);
  };
}

struct Sample {
  const char* name;
  Bytes payload;
  Reader read;
};
std::vector<Sample> samples() {
  return {{"hello", encode(hello()), reader_of(&decode_hello)},
          {"welcome", encode(Welcome{1, kOurFeatures, "stopvisor 0.1.0"}), reader_of(&decode_welcome)},
          {"refusal", encode(vmm::Error{"run", "vm1", "it lacks avx512", vmm::Status::kRefused}),
           reader_of(&decode_refusal)},
          {"machine", *encode(machine()), reader_of(&decode_machine)},
          {"round", encode(RoundMark{3, 1ULL << 33}), reader_of(&decode_round)},
          {"state", *encode(state()), reader_of(&decode_state)},
          {"word", encode(Word::kRunning), reader_of(&decode_word)}};
}

template <class Message>
std::string refusal_of(const Decoded<Message>& decoded) {
  if (decoded)
    return "taken";
  EXPECT_EQ(decoded.error().status, vmm::Status::kRefused);
  return decoded.error().reason;
}

TEST(Messages, AreReadAsTheyWereWritten) {
  EXPECT_EQ(decode_hello("test", encode(hello())).value(), hello());
  const Welcome welcome{7, 5, "other 2"};
  EXPECT_EQ(decode_welcome("test", encode(welcome)).value(), welcome);
  EXPECT_EQ(decode_machine("test", *encode(machine())).value(), machine());
  const RoundMark mark{UINT32_MAX, UINT64_MAX};
  EXPECT_EQ(decode_round("test", encode(mark)).value(), mark);
  EXPECT_EQ(decode_state("test", *encode(state())).value(), state());
  for (const Word word : {Word::kCommit, Word::kAbandon, Word::kPrepared, Word::kRunning, Word::kAbandoned})
    EXPECT_EQ(decode_word("test", encode(word)).value(), word);
  const vmm::Error refusal{"run", "vm1", "no", vmm::Status::kBusy};
  const auto read = decode_refusal("test", encode(refusal));
  ASSERT_TRUE(read);
  EXPECT_EQ(read->message(), refusal.message());
  EXPECT_EQ(read->status, refusal.status);
}

TEST(Messages, CutOffAnywhereAreRefused) {
  for (const Sample& sample : samples())
    for (size_t length = 0; length < sample.payload.size(); ++length) {
      const auto taken = sample.read(std::span(sample.payload).first(length));
      EXPECT_FALSE(taken) << sample.name << " of " << length;
      if (!taken) {
        EXPECT_EQ(taken.error().status, vmm::Status::kRefused);
      }
    }
}

TEST(Messages, WithSomethingBehindAreRefused) {
  for (Sample& sample : samples()) {
    sample.payload.push_back(std::byte(0));
    const auto taken = sample.read(sample.payload);
    ASSERT_FALSE(taken) << sample.name;
    EXPECT_EQ(taken.error().reason, "it is too long");
    EXPECT_EQ(taken.error().operation, "test");
  }
}

// What is taken for another message is one, and has that one spelling (but for texts, which are made printable).
TEST(Messages, WithAnyByteChangedAreAnotherOrNone) {
  for (const Sample& sample : samples())
    for (size_t at = 0; at < sample.payload.size(); ++at)
      for (const uint8_t change : testing::kChanges) {
        Bytes payload = sample.payload;
        payload[at] ^= std::byte(change);
        const auto taken = sample.read(payload);
        if (taken && *taken != payload) {
          const auto again = sample.read(*taken);
          EXPECT_TRUE(again && *again == *taken) << sample.name << " at " << at << ": " << change;
        }
      }
}

TEST(Messages, HelloThatCannotBeIsNamed) {
  const auto refusal = [](const std::function<void(Hello&)>& change) {
    Hello other = hello();
    change(other);
    return refusal_of(decode_hello("test", encode(other)));
  };
  EXPECT_EQ(refusal([](Hello&) {}), "taken");
  EXPECT_EQ(refusal([](Hello& h) { h.least_version = 0; }), "its range of versions is none");
  EXPECT_EQ(refusal([](Hello& h) { h.least_version = 4; }), "its range of versions is none");
  EXPECT_EQ(refusal([](Hello& h) { h.required_features = kFeatureTls; }), "it requires what it does not offer");
  EXPECT_EQ(refusal([](Hello& h) { h.id = {}; }), "its migration has no id");
  EXPECT_EQ(refusal([](Hello& h) { h.role = static_cast<LinkRole>(3); }), "it is for a link of no known role");
  EXPECT_EQ(refusal([](Hello& h) { h.number = 0; }), "its link has a number that it cannot have");
  EXPECT_EQ(refusal([](Hello& h) { h.number = 16; }), "its link has a number that it cannot have");
  EXPECT_EQ(refusal([](Hello& h) { h.role = LinkRole::kControl; }), "its link has a number that it cannot have");
  EXPECT_EQ(refusal([](Hello& h) { h.vm = ""; }), "its VM's name cannot be one");
  EXPECT_EQ(refusal([](Hello& h) { h.vm = std::string(300, 'v'); }), "taken"); // it was cut
  Bytes payload = encode(hello());
  const size_t name = payload.size() - 2 - hello().program.size() - 3;
  payload[name] = std::byte('\n');
  EXPECT_EQ(refusal_of(decode_hello("test", payload)), "its VM's name cannot be one");
}

TEST(Messages, MachineThatCannotBeIsRefusedOnBothSides) {
  // At the source by encode(); at the destination the same check is behind the bytes, see the fuzzer.
  const auto refusal = [](const std::function<void(MachineFacts&)>& change) {
    MachineFacts other = machine();
    change(other);
    const auto bytes = encode(other);
    return bytes ? "taken" : bytes.error().reason;
  };
  EXPECT_EQ(refusal([](MachineFacts&) {}), "taken");
  const std::string sent = "cannot be sent: ";
  EXPECT_EQ(refusal([](MachineFacts& m) { m.streams = 0; }), sent + "it has no links for pages, or too many");
  EXPECT_EQ(refusal([](MachineFacts& m) { m.streams = 17; }), sent + "it has no links for pages, or too many");
  EXPECT_EQ(refusal([](MachineFacts& m) { m.cpus = 0; }), sent + "it has no vCPUs");
  EXPECT_EQ(refusal([](MachineFacts& m) { m.disks.resize(65); }), sent + "it has too many disks");
  EXPECT_EQ(refusal([](MachineFacts& m) { m.memory.clear(); }),
            sent + "it has no memory, or too many regions of it");
  EXPECT_EQ(refusal([](MachineFacts& m) { m.memory[0].bytes = 100; }),
            sent + "a region of its memory is not made of pages");
  EXPECT_EQ(refusal([](MachineFacts& m) { m.memory[1].bytes = 0; }),
            sent + "a region of its memory is not made of pages");
  EXPECT_EQ(refusal([](MachineFacts& m) { m.memory[1].bytes = ~0ULL << 12; }),
            sent + "a region of its memory goes beyond all addresses");
  EXPECT_EQ(refusal([](MachineFacts& m) { m.memory[0].bytes = 0x1'0000'0000; }),
            sent + "regions of its memory touch, overlap, or are not in order");
  EXPECT_EQ(refusal([](MachineFacts& m) { std::swap(m.memory[0], m.memory[1]); }),
            sent + "regions of its memory touch, overlap, or are not in order");
  EXPECT_EQ(refusal([](MachineFacts& m) { m.requirements[0].version = 0; }), sent + "a section has no version");
  EXPECT_EQ(refusal([](MachineFacts& m) { m.requirements[1].instance = 0; }), sent + "a section is there twice");
  EXPECT_EQ(refusal([](MachineFacts& m) {
              m.requirements[0].payload.resize(kMaxMachinePayload);
            }).find("is too large to be sent"),
            0U);
}

TEST(Messages, MachineWithABadByteIsRefusedByTheSameChecks) {
  const Bytes good = *encode(machine());
  const auto with = [&](size_t at, unsigned value) {
    Bytes payload = good;
    payload[at] = static_cast<std::byte>(value);
    return refusal_of(decode_machine("test", payload));
  };
  EXPECT_EQ(with(0, 17), "it has no links for pages, or too many");
  EXPECT_EQ(with(2, 0), "it has no vCPUs");
  EXPECT_EQ(with(6, 65), "it has too many regions of memory");
  EXPECT_EQ(with(6, 0), "it is too long");
  EXPECT_EQ(with(10, 1), "a region of its memory is not made of pages");
}

TEST(Messages, StateNamesEveryLinkOnce) {
  const auto refusal = [](std::vector<LinkDigest> links) {
    const auto bytes = encode(StateMessage{false, std::move(links), {}});
    return bytes ? "taken" : bytes.error().reason;
  };
  EXPECT_EQ(refusal({{}}), "taken");
  EXPECT_EQ(refusal({}), "cannot be sent: it tells of no links, or of too many");
  EXPECT_EQ(refusal({{0, 0, 0}, {2, 0, 0}}), "cannot be sent: it leaves out a link");
  EXPECT_EQ(refusal({{0, 0, 0}, {0, 0, 0}}), "cannot be sent: it leaves out a link");
  EXPECT_EQ(refusal(std::vector<LinkDigest>(17)), "cannot be sent: it tells of no links, or of too many");
  EXPECT_FALSE(encode(StateMessage{false, {{}}, {{1, 1, 0, Bytes(kMaxStatePayload)}}}));
}

TEST(Messages, APrepareIsNoWord) {
  EXPECT_EQ(refusal_of(decode_word("test", encode(Word::kPrepare))), "it is no word of the hand-over");
  EXPECT_EQ(refusal_of(decode_word("test", Bytes{std::byte(6)})), "it is no word of the hand-over");
}

TEST(Messages, AFlagIsOneOfTwo) {
  Bytes flag = *encode(state());
  flag[0] = std::byte(2);
  EXPECT_EQ(refusal_of(decode_state("test", flag)), "a flag that is neither 0 nor 1");
}

TEST(Messages, ARefusalIsHarmlessOnATerminal) {
  const auto read = decode_refusal(
      "test", encode(vmm::Error{"run\n", "\x1b[2J", "bad\r\n\x07 " + std::string(9'000, 'x'), vmm::Status::kDone}));
  ASSERT_TRUE(read);
  EXPECT_EQ(read->operation, "run?");
  EXPECT_EQ(read->object, "?[2J");
  EXPECT_EQ(read->reason.size(), kMaxLongText);
  EXPECT_TRUE(read->reason.starts_with("bad??? xxx"));
  EXPECT_EQ(read->status, vmm::Status::kFailed); // whatever it says: who refuses has not done it
}

TEST(Messages, TextsKeepWhatIsPrintable) {
  EXPECT_EQ(printable_text("Zürich 東京 😀", 100), "Zürich 東京 😀");
  EXPECT_EQ(printable_text("ü", 1), "");
  EXPECT_EQ(printable_text("aüb", 2), "a");
  EXPECT_EQ(printable_text("a\x80z", 9), "a?z");            // no character begins so
  EXPECT_EQ(printable_text("\xc3", 9), "?");                // nor ends so
  EXPECT_EQ(printable_text("\xc0\xaf", 9), "??");           // too long a spelling of '/'
  EXPECT_EQ(printable_text("\xe0\x80\xaf", 9), "???");      // and this
  EXPECT_EQ(printable_text("\xed\xa0\x80", 9), "???");      // half of a pair
  EXPECT_EQ(printable_text("\xf4\x90\x80\x80", 9), "????"); // beyond the last one
  EXPECT_EQ(printable_text("\xc2\x9b", 9), "??");           // CSI in one character
  EXPECT_EQ(printable_text("\x7f\x1f\n", 9), "???");
  EXPECT_EQ(printable_text("\xe2\x80\xae", 9), "???"); // turns what follows around
}

TEST(Messages, BothSettleOnAVersionAndOnFeatures) {
  Hello from = hello();
  const auto agreed = agree("run", from);
  ASSERT_TRUE(agreed);
  EXPECT_EQ(agreed->version, kProtocolVersion);
  EXPECT_EQ(agreed->features, kOurFeatures);
  from.features = from.required_features = 0;
  EXPECT_EQ(agree("run", from)->features, 0U);
  from.least_version = 2;
  EXPECT_EQ(agree("run", from).error().reason,
            "the source (stopvisor 0.1.0) speaks versions 2 to 3, this destination version 1");
  from.least_version = from.most_version = 9;
  EXPECT_EQ(agree("run", from).error().message(),
            "run: the protocol: the source (stopvisor 0.1.0) speaks version 9, this destination version 1");
  EXPECT_EQ(agree("run", from).error().status, vmm::Status::kRefused);
  from = hello();
  from.required_features = kFeaturePostCopy | kFeatureTls | kFeatureSharedMemory | 1ULL << 63 | kFeatureZstd;
  EXPECT_EQ(agree("run", from).error().reason, "the source requires what this destination lacks: post-copy, TLS, "
                                               "memory handed over on one host, feature 63");
}

} // namespace
} // namespace stopvisor::migrate
