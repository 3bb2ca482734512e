// SPDX-License-Identifier: Apache-2.0
// Stops a VM again and again at random moments, through its control socket, from power-on until it ends.
//
// Run in the lab's outer machine against a Linux guest under load; what the guest noticed is for others to check.
// Each stop is a pause, a hold of one of the given lengths, and a resume. Usage:
//   lab_storm VM STOPS SEED LONG-HOLDS LONG-MS
// LONG-HOLDS of the stops, spread over them, hold for LONG-MS; the others for 0, 1 or 100 ms. SIGTERM ends it
// early. It prints one JSON object and ends with 0 where each pause was given and taken back, or the VM ended.
#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "tools/client/client.h"

namespace stopvisor {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kPatience{120'000}; // a busy host under a software CPU
std::atomic<bool> g_enough = false;

struct Plan {
  std::string vm;
  unsigned stops = 0;
  unsigned seed = 0;
  unsigned long_holds = 0;
  milliseconds long_hold{};
};

struct Tally {
  unsigned stops = 0;
  std::array<unsigned, 4> holds{}; // 0, 1, 100 ms, long
  std::chrono::nanoseconds slowest{};
  bool ended = false; // with the VM
  std::string failure;
};

std::optional<unsigned> number(std::string_view text) {
  unsigned value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size() ? std::optional(value) : std::nullopt;
}

std::optional<Plan> parse(std::span<char*> arguments) {
  if (arguments.size() != 6)
    return std::nullopt;
  std::array<unsigned, 4> numbers{};
  for (size_t i = 0; i < numbers.size(); ++i) {
    const auto value = number(arguments[i + 2]);
    if (!value)
      return std::nullopt;
    numbers.at(i) = *value;
  }
  return Plan{arguments[1], numbers[0], numbers[1], numbers[2], milliseconds(numbers[3])};
}

// The socket is there a moment after the VM's process is: nobody tells us when.
std::expected<tools::Client, vmm::Error> connect(const std::string& vm) {
  const auto limit = Clock::now() + kPatience;
  for (;;) {
    auto client = tools::Client::connect("storm", vm);
    if (client || Clock::now() > limit || g_enough.load(std::memory_order_relaxed))
      return client;
    std::this_thread::sleep_for(milliseconds(1));
  }
}

class Storm {
public:
  explicit Storm(const Plan& plan) : plan_(plan), random_(plan.seed) {}

  Tally run() {
    auto client = connect(plan_.vm);
    if (!client)
      tally_.failure = client.error().message();
    else
      client->set_patience(kPatience);
    while (tally_.failure.empty() && !tally_.ended && tally_.stops < plan_.stops &&
           !g_enough.load(std::memory_order_relaxed)) // set by a signal, no data goes with it
      stop_once(*client);
    return std::move(tally_);
  }

private:
  unsigned below(unsigned limit) { return std::uniform_int_distribution<unsigned>(0, limit - 1)(random_); }

  void stop_once(tools::Client& client) {
    // Mostly soon after the last one, now and then after the guest got somewhere.
    std::this_thread::sleep_for(std::chrono::microseconds(below(below(8) == 0 ? 400'000 : 100'000)));
    const auto asked = Clock::now();
    if (!done(client.pause(kPatience)))
      return;
    tally_.slowest = std::max<std::chrono::nanoseconds>(tally_.slowest, Clock::now() - asked);
    std::this_thread::sleep_for(draw_hold());
    if (done(client.resume()))
      ++tally_.stops;
  }

  milliseconds draw_hold() {
    const bool is_long = plan_.long_holds != 0 &&
                         (tally_.stops + 1) % (plan_.stops / (plan_.long_holds + 1)) == 0 &&
                         tally_.holds[3] < plan_.long_holds;
    const unsigned drawn = below(100);
    const size_t kind = is_long ? 3 : drawn < 50 ? 0 : drawn < 90 ? 1 : 2;
    ++tally_.holds.at(kind);
    return std::array{milliseconds(0), milliseconds(1), milliseconds(100), plan_.long_hold}.at(kind);
  }

  bool done(const std::expected<void, vmm::Error>& outcome) {
    if (outcome)
      return true;
    // The connection ends with the VM, wherever a request was.
    if (has_ended())
      tally_.ended = true;
    else
      tally_.failure = outcome.error().message();
    return false;
  }

  // A VM that ends refuses stops before it takes its socket away, and tells of its end meanwhile.
  [[nodiscard]] bool has_ended() const {
    auto client = tools::Client::connect("storm", plan_.vm);
    if (!client)
      return true;
    client->set_patience(kPatience);
    const auto status = client->request("GET", "/v1/status");
    return status ? status->contains(R"("state":"ended")") : !tools::Client::connect("storm", plan_.vm);
  }

  const Plan& plan_;
  std::mt19937 random_;
  Tally tally_;
};

int report(const Tally& tally) {
  std::printf(R"({"stops": %u, "held_0_ms": %u, "held_1_ms": %u, "held_100_ms": %u, "held_long": %u, )"
              R"("slowest_ms": %lld, "ended": %s, "failure": "%s"})"
              "\n",
              tally.stops, tally.holds[0], tally.holds[1], tally.holds[2], tally.holds[3],
              static_cast<long long>(std::chrono::duration_cast<milliseconds>(tally.slowest).count()),
              tally.ended ? "true" : "false", tally.failure.c_str());
  return tally.failure.empty() ? 0 : 1;
}

} // namespace
} // namespace stopvisor

int main(int argc, char** argv) {
  using namespace stopvisor;
  const auto plan = parse(std::span(argv, static_cast<size_t>(argc)));
  if (!plan || plan->stops <= plan->long_holds) {
    std::fputs("usage: lab_storm VM STOPS SEED LONG-HOLDS LONG-MS\n", stderr);
    return 2;
  }
  std::signal(SIGTERM, [](int) { g_enough.store(true, std::memory_order_relaxed); });
  return report(Storm(*plan).run());
}
