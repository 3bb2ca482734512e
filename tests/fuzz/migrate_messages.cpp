// SPDX-License-Identifier: Apache-2.0
// The messages of a migration, from whoever called: what is taken is read back as the same.
#include <algorithm>
#include <iterator>

#include "tests/fuzz/fuzzer.h"
#include "tools/migrate/messages.h"
#include "tools/migrate/texts.h"

namespace stopvisor::fuzz {
namespace {

using namespace migrate;

Bytes bytes_of_message(const std::expected<Bytes, vmm::Error>& encoded) {
  must(encoded.has_value(), "a message that cannot be sent");
  return *encoded;
}
template <class Message>
Bytes encoded(const Message& message) {
  return bytes_of_message(encode(message));
}

// Texts for people are made printable: apart from them a message has one spelling.
template <class Message>
void try_message(Decoded<Message> (*decode)(std::string_view, ByteSpan), ByteSpan payload) {
  const auto message = decode("fuzz", payload);
  if (!message) {
    must(message.error().status == vmm::Status::kRefused && !message.error().reason.empty(), "no reason");
    return;
  }
  const Bytes once = encoded(*message);
  must(once.size() <= payload.size(), "a message that grew");
  const auto again = decode("fuzz", once);
  must(again.has_value() && encoded(*again) == once, "a message that is another one");
  if constexpr (requires { *message == *again; })
    must(*message == *again, "a message that is not what was read");
  const std::string_view text = text_of(payload);
  if (printable_text(text, text.size()) == text)
    must(std::ranges::equal(once, payload), "a message with two spellings");
}

void try_hello(ByteSpan payload) {
  try_message(&decode_hello, payload);
  if (const auto hello = decode_hello("fuzz", payload)) {
    const auto welcome = agree("fuzz", *hello);
    if (welcome)
      must(welcome->version >= hello->least_version && welcome->version <= hello->most_version &&
               (welcome->features & ~hello->features) == 0 && (hello->required_features & ~welcome->features) == 0,
           "an agreement on what was not offered");
  }
}

void try_machine(ByteSpan payload) {
  try_message(&decode_machine, payload);
  if (const auto facts = decode_machine("fuzz", payload)) {
    must(facts->streams > 0 && facts->streams <= kMaxLinks && facts->disks.size() <= kMaxDisks, "a count");
    uint64_t end = 0;
    for (const MemoryRegion& region : facts->memory) {
      must(region.gpa >= end && region.bytes > 0 && region.gpa + region.bytes > region.gpa, "a region");
      end = region.gpa + region.bytes;
    }
  }
}

using Try = void (*)(ByteSpan);
constexpr Try kTries[] = {&try_hello,
                          [](ByteSpan payload) { try_message(&decode_welcome, payload); },
                          [](ByteSpan payload) { try_message(&decode_refusal, payload); },
                          &try_machine,
                          [](ByteSpan payload) { try_message(&decode_round, payload); },
                          [](ByteSpan payload) { try_message(&decode_state, payload); },
                          [](ByteSpan payload) { try_message(&decode_word, payload); }};

} // namespace

std::vector<Bytes> seeds() {
  Hello hello;
  hello.features = kOurFeatures;
  hello.id.fill(std::byte(7));
  hello.vm = "vm1";
  hello.program = "stopvisor 0.1.0";
  MachineFacts machine;
  machine.cpus = 2;
  machine.memory = {{0, 1 << 20}, {1ULL << 32, 4096}};
  machine.disks = {{512, true, "/a"}};
  machine.requirements = {{0x100, 1, 0, Bytes(9, std::byte(1))}};
  const StateMessage state{.held = true, .links = {{0, 3, 4}, {1, 5, 6}}, .sections = machine.requirements};
  return {chosen(0, encode(hello)),
          chosen(1, encode(Welcome{1, 7, "stopvisor 0.1.0"})),
          chosen(2, encode(vmm::Error{"run", "vm1", "it lacks avx512", vmm::Status::kRefused})),
          chosen(3, encoded(machine)),
          chosen(4, encode(RoundMark{1, 2})),
          chosen(5, encoded(state)),
          chosen(6, encode(Word::kCommit))};
}

void try_one(ByteSpan input) {
  const Choice choice = choice_of(input);
  kTries[choice.first % std::size(kTries)](choice.rest);
}

} // namespace stopvisor::fuzz
