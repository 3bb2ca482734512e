// SPDX-License-Identifier: Apache-2.0
#include "tools/migrate/source.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "tools/migrate/convergence.h"
#include "tools/migrate/source_parts.h"
#include "tools/migrate/throttle.h"
#include "tools/migrate/waiting.h"
#include "tools/snapshot/digest.h"
#include "tools/snapshot/disk_image.h"
#include "vmm/absent_memory.h"
#include "vmm/urgent_thread.h"

namespace stopvisor::migrate {
namespace {

using vmm::Error;
using vmm::Status;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kStopWithin{5};
constexpr std::chrono::milliseconds kSwitchOverhead{2}; // of a switch, besides the pages: state, words, threads
constexpr std::chrono::milliseconds kLastWords{500};    // in which a peer that hung up is heard on why it did
constexpr uint32_t kMostLongFlushes = 3;
constexpr size_t kMostRoundsTold = 64;
constexpr int kZstdLevel = 1;

// One migration or live snapshot of a VM at a time.
class Alone {
public:
  explicit Alone(vmm::Vm& vm) : vm_(vm), entered_(vm.freeze_place().enter()) {}
  ~Alone() {
    if (entered_)
      vm_.freeze_place().leave();
  }
  Alone(const Alone&) = delete;
  Alone& operator=(const Alone&) = delete;
  [[nodiscard]] explicit operator bool() const noexcept { return entered_; }

private:
  vmm::Vm& vm_;
  const bool entered_;
};

std::string in_numbers(double pages_per_second) {
  return std::to_string(static_cast<uint64_t>(pages_per_second * kPageBytes / (1 << 20))) + " MiB/s";
}

} // namespace

// Its token is asked to stop when the time is over, or `other` is.
class Source::Limit {
public:
  Limit(std::optional<Clock::time_point> end, const std::stop_token& other)
      : follow_(other, [this] { source_.request_stop(); }) {
    if (end)
      thread_ = std::jthread([this, until = *end](const std::stop_token& stop) {
        if (sleep_until(until, stop))
          source_.request_stop();
      });
  }
  [[nodiscard]] std::stop_token token() const noexcept { return source_.get_token(); }
  // The time does not count from now on. It may have been over before.
  void lift() noexcept { thread_ = {}; }

private:
  std::stop_source source_;
  std::stop_callback<std::function<void()>> follow_;
  std::jthread thread_;
};

const char* name_of(SourcePhase phase) noexcept {
  switch (phase) {
  case SourcePhase::kConnecting:
    return "connecting";
  case SourcePhase::kCopying:
    return "copying";
  case SourcePhase::kSwitching:
    return "switching";
  case SourcePhase::kDoubt:
    return "in-doubt";
  case SourcePhase::kGone:
    return "gone";
  case SourcePhase::kHere:
    return "here";
  }
  return "";
}

Source::Source(vmm::Vm& vm, SourceOptions options, SourceSurroundings around)
    : vm_(vm), options_(std::move(options)), around_(std::move(around)), id_(snapshot::random_id()),
      begin_(Clock::now()), shared_(std::make_unique<Shared>()) {
  shared_->view.id = snapshot::hex_text(id_);
}

Source::~Source() = default;

Error Source::error(std::string reason, Status status) const {
  return {options_.operation, vm_.config().name, std::move(reason), status};
}

void Source::enter(SourcePhase phase, const char* words) {
  {
    const std::lock_guard guard(shared_->mutex);
    shared_->view.phase = phase;
  }
  around_.begin_phase(words);
}

Source::View Source::view() const {
  const std::lock_guard guard(shared_->mutex);
  return shared_->view;
}

std::expected<void, Error> Source::tell(OperatorWord word, std::optional<Address> other) {
  if (view().phase != SourcePhase::kDoubt)
    return std::unexpected(error("nothing is in doubt: there is nothing to decide", Status::kRefused));
  shared_->events.push({.word = word, .other = std::move(other)});
  return {};
}

std::expected<void, Error> Source::check_goes_on() const {
  if (vm_.state() == vmm::VmState::kEnded)
    return std::unexpected(error("the VM ended meanwhile"));
  if (around_.stop.stop_requested())
    return std::unexpected(error("was cancelled"));
  return {};
}

std::expected<SourceFigures, Error> Source::run() {
  const Alone alone(vm_);
  if (!alone) {
    enter(SourcePhase::kHere, "over");
    return std::unexpected(error("a live snapshot or a migration of it is under way", Status::kBusy));
  }
  Connection connection(vm_, shared_->events);
  std::optional<Clock::time_point> end;
  if (options_.timeout)
    end = begin_ + std::chrono::duration_cast<Clock::duration>(*options_.timeout);
  Limit limit(end, around_.stop);
  auto done = connect(connection, limit.token());
  if (done)
    done = copy(connection, limit);
  else if (auto goes_on = check_goes_on(); !goes_on) // and not that a link was cut for it
    done = std::move(goes_on);
  else if (limit.token().stop_requested())
    done = std::unexpected(
        error("the guest could not be moved within the time limit: the destination did not begin to "
              "take it; it goes on here",
              Status::kBusy));
  if (!done) {
    if (connection.control) // it is told why nothing more comes
      connection.control->refuse(done.error());
    enter(SourcePhase::kHere, "over");
    return std::unexpected(std::move(done.error()));
  }
  return view().figures;
}

// What the destination must be like. CONTEXT: the guest runs.
std::expected<MachineFacts, Error> Source::facts() {
  MachineFacts facts;
  facts.streams = options_.streams;
  facts.cpus = vm_.cpu_count();
  for (const vmm::MemorySlot& slot : vm_.memory().slots())
    facts.memory.push_back({slot.base.value, slot.size_bytes});
  const std::vector<int> images = vm_.disk_images();
  for (size_t number = 0; number < images.size(); ++number) {
    const vmm::DiskConfig& disk = vm_.config().disks[number];
    facts.disks.push_back({snapshot::image_at(images[number]).bytes, disk.read_only, disk.path});
  }
  std::expected<std::vector<vmm::StateSection>, Error> requirements;
  const auto stopped = vm_.stops().run(
      [&](stopper::StopContext&) {
        requirements = vm_.save_requirements();
        return 0;
      },
      {.deadline = Clock::now() + kStopWithin});
  if (!stopped)
    return std::unexpected(vm_.explain(options_.operation, stopped.error()));
  if (!requirements)
    return std::unexpected(std::move(requirements.error()));
  facts.requirements = *std::move(requirements);
  return facts;
}

std::expected<void, Error> Source::connect(Connection& connection, const std::stop_token& stop) {
  enter(SourcePhase::kConnecting, "connecting");
  // Memory that is still to come from a snapshot comes now: what is not there cannot be sent.
  if (vmm::AbsentMemory* const absent = vm_.absent_memory(); absent != nullptr)
    if (auto all = absent->bring_all(stop); !all)
      return std::unexpected(std::move(all.error()));
  const auto machine = facts();
  if (!machine)
    return std::unexpected(machine.error());
  const auto bytes = encode(*machine);
  if (!bytes)
    return std::unexpected(bytes.error());
  Hello hello{.features = kOurFeatures,
              .required_features =
                  kFeatureZeroRuns | kFeatureCopies | (options_.compress ? uint64_t{kFeatureZstd} : 0),
              .id = id_,
              .role = LinkRole::kControl,
              .number = 0,
              .vm = vm_.config().name,
              .program = "stopvisor"};
  auto control = Call::make(options_.operation, options_.to, options_.insecure, hello, stop);
  if (!control)
    return std::unexpected(std::move(control.error()));
  connection.control = *std::move(control);
  const std::stop_callback cut(stop, [&] { connection.control->link().cut(); });
  if (auto said = connection.control->voice().say(FrameKind::kMachine, *bytes); !said)
    return said;
  if (auto accepted = connection.control->expect(FrameKind::kAccepted); !accepted)
    return std::unexpected(std::move(accepted.error()));
  hello.role = LinkRole::kStream;
  for (uint16_t number = 1; number < options_.streams; ++number) {
    hello.number = number;
    auto stream = Call::make(options_.operation, options_.to, options_.insecure, hello, stop);
    if (!stream)
      return std::unexpected(std::move(stream.error()));
    connection.streams.push_back(*std::move(stream));
  }
  return {};
}

namespace {

// Waits for the destination's word that a round is in place. Whatever else it says ends the migration.
std::expected<void, Error> await_round(EventQueue<SourceEvent>& events, Call& control, uint32_t round,
                                       uint64_t pages, const std::stop_token& stop) {
  constexpr std::chrono::milliseconds kLook{100};
  for (;;) {
    if (stop.stop_requested())
      return std::unexpected(control.link().error("was cancelled"));
    auto event = events.next(Clock::now() + kLook);
    if (!event || event->word) // nobody is in doubt
      continue;
    if (!event->heard.link)
      return std::unexpected(std::move(event->heard.link.error()));
    const Frame& frame = event->heard.frame;
    if (frame.kind == FrameKind::kRefusal)
      return std::unexpected(control.refused_by(frame));
    const auto mark =
        frame.kind == FrameKind::kRoundDone ? decode_round("migrate", frame.payload) : std::unexpected(Error{});
    if (!mark || mark->round != round || mark->pages != pages)
      return std::unexpected(
          control.link().error("says something else than that round " + std::to_string(round) + " is in place"));
    return {};
  }
}

} // namespace

Error Source::Connection::last_word(Error error) {
  const auto until = Clock::now() + kLastWords;
  while (auto event = events_.next(until)) {
    if (event->word) // nobody is in doubt
      continue;
    if (!event->heard.link)
      return std::move(event->heard.link.error());
    if (event->heard.frame.kind == FrameKind::kRefusal)
      return control->refused_by(event->heard.frame);
  }
  return error;
}

std::expected<void, Error> Source::copy(Connection& connection, Limit& limit) {
  enter(SourcePhase::kCopying, "copying memory");
  auto log = vm_.log_dirty_pages(options_.operation);
  if (!log)
    return std::unexpected(std::move(log.error()));
  connection.log = *std::move(log);
  connection.listen();
  connection.pages.add_all();
  std::vector<Call*> calls{connection.control.get()};
  for (const auto& stream : connection.streams)
    calls.push_back(stream.get());
  const uint64_t all_pages = connection.pages.count();
  if (around_.progress != nullptr)
    around_.progress->total_bytes.store(all_pages * kPageBytes, std::memory_order_relaxed); // for people
  connection.sender = std::make_unique<PageSender>(std::move(calls), all_pages,
                                                   SenderOptions{.zstd_level = options_.compress ? kZstdLevel : 0,
                                                                 .bytes_per_second = options_.bytes_per_second,
                                                                 .progress = around_.progress,
                                                                 .stop = limit.token()});
  Throttle throttle(vm_);
  Convergence model(options_.max_downtime, kSwitchOverhead);
  const auto why = [&](Error failed) {
    if (auto goes_on = check_goes_on(); !goes_on)
      return goes_on.error();
    if (limit.token().stop_requested())
      return error("the guest could not be moved within the time limit: it writes " +
                       in_numbers(model.dirty_per_second()) + ", the link carries " +
                       in_numbers(model.pages_per_second()) + "; it goes on here",
                   Status::kBusy);
    return failed;
  };
  auto looked = Clock::now();
  uint32_t long_flushes = 0;
  for (;; ++connection.round) {
    if (auto goes_on = check_goes_on(); !goes_on)
      return goes_on;
    const auto begin = Clock::now();
    const uint64_t pages = connection.pages.count();
    connection.sender->begin(connection.round, connection.pages, false);
    const auto sent = connection.sender->finish();
    if (!sent)
      return std::unexpected(why(connection.last_word(sent.error())));
    if (auto there =
            await_round(shared_->events, *connection.control, connection.round, sent->pages, limit.token());
        !there)
      return std::unexpected(why(std::move(there.error())));
    const auto took = Clock::now() - begin;
    connection.pages.clear();
    if (auto taken = connection.log->take(connection.pages); !taken)
      return taken;
    const auto now = Clock::now();
    const RoundSeen seen{.sent = pages, .took = took, .dirty = connection.pages.count(), .since = now - looked};
    looked = now;
    const auto advice = model.look(seen);
    note_round({connection.round, pages, took, throttle.figures().fraction}, model, throttle.figures(),
               *connection.sender);
    if (around_.progress != nullptr) // what is still to be sent, as far as one knows
      around_.progress->total_bytes.store(around_.progress->done_bytes.load(std::memory_order_relaxed) +
                                              seen.dirty * kPageBytes,
                                          std::memory_order_relaxed);
    if (advice.next == Convergence::Next::kSwitch) {
      // What the stop would have to wait for otherwise. Where it takes long the guest, slowed as before, has
      // written meanwhile what is to be sent first.
      const auto flush = Clock::now();
      if (auto flushed = vm_.flush_disks(); !flushed)
        return flushed;
      if (Clock::now() - flush <= options_.max_downtime || ++long_flushes > kMostLongFlushes)
        break;
    }
    throttle.set(advice.slowed);
  }
  ++connection.round;
  throttle.end();
  limit.lift(); // it is for what comes before the switch
  if (limit.token().stop_requested())
    return std::unexpected(why(error("was cancelled")));
  return hand_over(connection);
}

void Source::note_round(const RoundTold& round, const Convergence& model, const Throttle::Figures& throttle,
                        const PageSender& sender) {
  const BatchFigures sent = sender.figures();
  const std::lock_guard guard(shared_->mutex);
  SourceFigures& figures = shared_->view.figures;
  figures.rounds.push_back(round);
  if (figures.rounds.size() > kMostRoundsTold)
    figures.rounds.erase(figures.rounds.begin());
  ++figures.rounds_made;
  figures.total = Clock::now() - begin_;
  figures.payload_bytes = sent.bytes;
  figures.pages_looked_at = sent.looked_at;
  figures.pages_sent = sent.sent;
  figures.pages_zero = sent.zeros;
  figures.pages_copies = sent.copies;
  figures.pages_unchanged = sent.unchanged;
  figures.throttle_stops = throttle.stops;
  figures.throttled_for = throttle.held_for;
  figures.pages_per_second = model.pages_per_second();
  figures.dirty_per_second = model.dirty_per_second();
}

std::expected<void, Error> Source::hand_over(Connection& connection) {
  enter(SourcePhase::kSwitching, "handing over");
  Switch the_switch(*this, connection);
  Switch::Outcome outcome = Switch::Outcome::kHere;
  const auto stopped = [&] {
    const vmm::UrgentForAWhile urgent;
    return vm_.stops().run(
        [&](stopper::StopContext&) {
          outcome = the_switch.run();
          return 0;
        },
        {.deadline = Clock::now() + kStopWithin});
  }();
  if (!stopped)
    return std::unexpected(vm_.explain(options_.operation, stopped.error()));
  if (outcome == Switch::Outcome::kHere && the_switch.unheard())
    the_switch.take_back();
  if (outcome != Switch::Outcome::kGone)
    return std::unexpected(the_switch.reason());
  return {};
}

} // namespace stopvisor::migrate
