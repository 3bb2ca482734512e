// SPDX-License-Identifier: Apache-2.0
// bench: measures the stop, with a peer where it is installed.
#include <charconv>
#include <cstdio>

#include <nlohmann/json.hpp>

#include "tools/bench/patch_bench.h"
#include "tools/bench/stop_bench.h"
#include "tools/stopvisor/output.h"
#include "tools/stopvisor/verb.h"

namespace stopvisor::tools {
namespace {

using nlohmann::json;
using vmm::Error;
using vmm::Status;

constexpr uint32_t kMostCpus = 256; // the probe guest's

std::expected<std::vector<uint32_t>, Error> parse_numbers(const std::string& option, const std::string& text,
                                                          uint32_t most) {
  std::vector<uint32_t> numbers;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at != end || numbers.empty()) {
    uint32_t number = 0;
    const auto [next, error] = std::from_chars(at, end, number);
    if (error != std::errc{} || number == 0 || number > most || (next != end && *next != ','))
      return std::unexpected(
          Error{"bench", option + " " + text, "must be numbers from 1 to " + std::to_string(most), Status::kUsage});
    numbers.push_back(number);
    at = next == end ? end : next + 1;
  }
  return numbers;
}

json to_json(const Percentiles& times) {
  return {{"p50_ns", times.p50}, {"p90_ns", times.p90}, {"p99_ns", times.p99}, {"max_ns", times.max}};
}

json to_json(const KindFigures& kinds) {
  json line{{"stop_one_cpu", to_json(kinds.one)}, {"full_stop", to_json(kinds.all)}};
  if (kinds.two)
    line["stop_of_two"] = to_json(*kinds.two);
  return line;
}

json to_json(const StopFigures& figures) {
  json line{{"cpus", figures.cpus},
            {"floor", to_json(figures.floor)},
            {"stop", to_json(figures.held)},
            {"release", to_json(figures.release)},
            {"with_lift", to_json(figures.lifted)},
            {"without_lift", to_json(figures.plain)},
            {"socket_pause", to_json(figures.pause)},
            {"socket_resume", to_json(figures.resume)},
            {"guest_gap", to_json(figures.gap)},
            {"guest_gap_without_stop", to_json(figures.gap_idle)}};
  if (figures.qemu_stop && figures.qemu_cont) {
    line["qemu_stop"] = to_json(*figures.qemu_stop);
    line["qemu_cont"] = to_json(*figures.qemu_cont);
  }
  return line;
}

void add_row(std::vector<std::vector<std::string>>& rows, uint32_t cpus, const char* what,
             const Percentiles& times) {
  const auto microseconds = [](int64_t nanoseconds) {
    char text[32];
    std::snprintf(text, sizeof text, "%.1f", static_cast<double>(nanoseconds) / 1000.0);
    return std::string(text);
  };
  rows.push_back({std::to_string(cpus), what, microseconds(times.p50), microseconds(times.p90),
                  microseconds(times.p99), microseconds(times.max)});
}

void add_rows(std::vector<std::vector<std::string>>& rows, const StopFigures& figures) {
  add_row(rows, figures.cpus, "floor: bare signal, all vCPUs out", figures.floor);
  add_row(rows, figures.cpus, "in-process stop, all held", figures.held);
  add_row(rows, figures.cpus, "in-process release", figures.release);
  for (const bool lift : {true, false}) {
    const KindFigures& kinds = lift ? figures.lifted : figures.plain;
    add_row(rows, figures.cpus, lift ? "stop_one_cpu" : "stop_one_cpu, nobody lifted", kinds.one);
    if (kinds.two)
      add_row(rows, figures.cpus, lift ? "partial stop of 2" : "partial stop of 2, nobody lifted", *kinds.two);
    add_row(rows, figures.cpus, lift ? "full stop" : "full stop, nobody lifted", kinds.all);
  }
  add_row(rows, figures.cpus, "socket round trip: pause", figures.pause);
  add_row(rows, figures.cpus, "socket round trip: resume", figures.resume);
  add_row(rows, figures.cpus, "guest gap, one empty stop", figures.gap);
  add_row(rows, figures.cpus, "guest gap, no stop (host noise)", figures.gap_idle);
  if (figures.qemu_stop && figures.qemu_cont) {
    add_row(rows, figures.cpus, "QEMU, QMP round trip: stop", *figures.qemu_stop);
    add_row(rows, figures.cpus, "QEMU, QMP round trip: cont", *figures.qemu_cont);
  }
}

json to_json(const PatchFigures& figures) {
  return {{"cpus", figures.cpus},
          {"empty_hold", to_json(figures.empty)},
          {"apply_hold", to_json(figures.apply)},
          {"revert_hold", to_json(figures.revert)},
          {"apply_work", to_json(figures.apply_work)},
          {"revert_work", to_json(figures.revert_work)},
          {"data_work", to_json(figures.data_work)}};
}

void add_rows(std::vector<std::vector<std::string>>& rows, const PatchFigures& figures) {
  add_row(rows, figures.cpus, "hold, empty stop", figures.empty);
  add_row(rows, figures.cpus, "hold, 16 sites of code applied", figures.apply);
  add_row(rows, figures.cpus, "hold, 16 sites of code reverted", figures.revert);
  add_row(rows, figures.cpus, "work under the stop, apply code", figures.apply_work);
  add_row(rows, figures.cpus, "work under the stop, revert code", figures.revert_work);
  add_row(rows, figures.cpus, "work under the stop, apply data", figures.data_work);
}

class BenchVerb final : public Verb {
public:
  const char* name() const noexcept override { return "bench"; }
  const char* summary() const noexcept override { return "Measure what a stop costs"; }
  const char* details() const noexcept override {
    return "WHAT is 'stop' or 'patch'. 'stop': for each number of vCPUs, all spinning in the probe guest: the "
           "floor (a bare signal "
           "out of\n"
           "KVM_RUN, seen by a waiting thread), the stop in this process, the round trip over the socket, and the\n"
           "largest jump of the clock in the guest, with and without a stop. In microseconds. Floor and stop are\n"
           "measured in turn, block by block, and so are the stops of one vCPU, of two and of all, with and "
           "without\n"
           "lifting the priority of threads that are late (a quarter of the rounds each). With --peer qemu, QEMU's "
           "'stop' and 'cont' with the same guest.\n"
           "'patch': how long the guest is held by an empty stop, and by those that apply and revert a patch of "
           "16\n"
           "sites of code with all checks, in turn; and how long of that is the patch's own work.\n\n"
           "Examples:\n"
           "  stopvisor bench stop\n"
           "  stopvisor bench patch --cpus 1,2,8\n"
           "  stopvisor bench stop --cpus 1,4 --rounds 200 --peer qemu";
  }
  void declare(Arguments& arguments) override {
    arguments.positional("WHAT", what_, "What to measure: stop or patch");
    arguments.option("--cpus", cpus_, "LIST", "Numbers of vCPUs (default 1,2,4,8,32,64)");
    arguments.option("--rounds", rounds_, "N", "Stops for each figure (default 1000)");
    arguments.option("--peer", peer_, "NAME", "Measure a peer beside: qemu");
  }
  std::expected<int, Error> run(bool json_wanted) override {
    if (what_ != "stop" && what_ != "patch")
      return std::unexpected(
          Error{"bench", what_, "no such benchmark; there are 'stop' and 'patch'", Status::kUsage});
    if (what_ == "patch" && peer_)
      return std::unexpected(Error{"bench", "--peer", "is for 'bench stop'", Status::kUsage});
    if (peer_ && *peer_ != "qemu")
      return std::unexpected(Error{"bench", *peer_, "no such peer; there is 'qemu'", Status::kUsage});
    const auto cpus = parse_numbers("--cpus", cpus_.value_or("1,2,4,8,32,64"), kMostCpus);
    if (!cpus)
      return std::unexpected(cpus.error());
    const auto rounds = parse_numbers("--rounds", rounds_.value_or("1000"), 1'000'000);
    if (!rounds)
      return std::unexpected(rounds.error());
    if (rounds->size() != 1 || rounds->front() < 10)
      return std::unexpected(Error{"bench", "--rounds", "must be one number, at least 10", Status::kUsage});
    const StopBenchOptions options{rounds->front(), peer_.has_value()};
    if (what_ == "patch")
      return measure("patch", *cpus, options, json_wanted,
                     [&](uint32_t count) { return bench_patch(count, options.rounds); });
    return measure("stop", *cpus, options, json_wanted, [&](uint32_t count) { return bench_stop(count, options); });
  }

private:
  template <class Bench>
  static std::expected<int, Error> measure(const char* what, const std::vector<uint32_t>& cpus,
                                           const StopBenchOptions& options, bool json_wanted, Bench bench) {
    json document = json::array();
    std::vector<std::vector<std::string>> rows{{"vCPUs", "what", "p50", "p90", "p99", "max [us]"}};
    for (const uint32_t count : cpus) {
      const auto figures = bench(count);
      if (!figures)
        return std::unexpected(figures.error());
      document.push_back(to_json(*figures));
      add_rows(rows, *figures);
    }
    constexpr std::array<size_t, 5> kRight{0, 2, 3, 4, 5};
    print_text(json_wanted ? json{{"rounds", options.rounds}, {what, document}}.dump(2) + "\n"
                           : table(rows, kRight));
    return 0;
  }

  std::string what_;
  std::optional<std::string> cpus_;
  std::optional<std::string> rounds_;
  std::optional<std::string> peer_;
};

} // namespace

std::unique_ptr<Verb> make_bench() {
  return std::make_unique<BenchVerb>();
}

} // namespace stopvisor::tools
