// SPDX-License-Identifier: Apache-2.0
#include "tools/migrate/destination.h"

#include <tuple>
#include <utility>

#include "tools/migrate/arriving_machine.h"
#include "tools/migrate/page_receiver.h"
#include "tools/snapshot/digest.h"

namespace stopvisor::migrate {
namespace {

using vmm::Error;
using vmm::Status;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kLook{100};
constexpr std::chrono::seconds kAnswersFor{10};
constexpr std::chrono::seconds kLastWords{1}; // on a link that cannot be written to any more
constexpr std::chrono::seconds kMachineWithin{10};

} // namespace

const char* name_of(DestinationPhase phase) noexcept {
  switch (phase) {
  case DestinationPhase::kWaiting:
    return "waiting";
  case DestinationPhase::kLoading:
    return "loading";
  case DestinationPhase::kReady:
    return "ready";
  case DestinationPhase::kOrphaned:
    return "orphaned";
  case DestinationPhase::kRunning:
    return "running";
  case DestinationPhase::kGaveUp:
    return "gave-up";
  }
  return "";
}

Destination::Destination(Doorkeeper& doorkeeper, DestinationOptions options)
    : doorkeeper_(doorkeeper), options_(std::move(options)) {}

Destination::~Destination() {
  doorkeeper_.hand_over_to(nullptr); // nobody pushes events after this
  answering_ = {};                   // joined
  ear_.reset();
}

Error Destination::error(std::string reason, Status status) const {
  return {options_.operation, view().vm, std::move(reason), status};
}

void Destination::enter(DestinationPhase phase) {
  const std::lock_guard guard(mutex_);
  view_.phase = phase;
}

Destination::View Destination::view() const {
  const std::lock_guard guard(mutex_);
  View view = view_;
  view.done_bytes = progress_.done_bytes.load(std::memory_order_relaxed); // for people
  return view;
}

// The source is not left to wait for somebody who has nothing more to say.
void Destination::refuse(const Error& why) noexcept {
  if (control_)
    control_->refuse(why);
  control_.reset();
  streams_.clear();
}

void Destination::take(std::unique_ptr<Call> control) {
  control_ = std::move(control);
  const std::lock_guard guard(mutex_);
  view_.phase = DestinationPhase::kLoading;
  view_.source = control_->link().name();
  view_.vm = control_->hello().vm;
  view_.id = snapshot::hex_text(control_->hello().id);
}

std::expected<vmm::VmConfig, Error> Destination::await_machine() {
  for (std::optional<Error> lost;;) {
    auto control = doorkeeper_.await_source(options_.stop);
    if (!control && lost && !options_.stop.stop_requested()) { // where the door led to one link alone, say
      enter(DestinationPhase::kGaveUp);
      control.error().reason += "; the last one: " + lost->message();
    }
    if (!control)
      return std::unexpected(std::move(control.error()));
    take(*std::move(control));
    auto config = hear_machine();
    if (config)
      return config;
    refuse(config.error());
    if (options_.stop.stop_requested())
      return config;
    // Anybody can say hello: nothing has begun, and the source that was meant may come yet.
    options_.tell("a caller was sent away: " + config.error().message());
    lost = std::move(config.error());
    doorkeeper_.let_another_in();
    const std::lock_guard guard(mutex_);
    view_ = {};
  }
}

std::expected<vmm::VmConfig, Error> Destination::hear_machine() {
  const std::stop_callback cut(options_.stop, [this] { control_->link().cut(); });
  control_->reader().expect_by(Clock::now() + kMachineWithin); // it has it ready: who trickles keeps others out
  const auto frame = control_->expect(FrameKind::kMachine);
  control_->reader().expect_by(std::nullopt);
  if (!frame)
    return std::unexpected(options_.stop.stop_requested() ? error("was cancelled") : frame.error());
  auto facts = decode_machine(options_.operation, frame->payload);
  auto config = facts ? config_of(options_.operation, view().vm, *facts) : std::unexpected(facts.error());
  if (!config)
    return config;
  facts_ = *std::move(facts);
  progress_.total_bytes.store(config->memory_bytes, std::memory_order_relaxed); // for people
  return config;
}

std::expected<void, Error> Destination::receive(vmm::Vm& vm, const DestinationSteps& steps) {
  std::optional<vmm::UrgentForAWhile> urgent; // from the moment on in which the guest waits for us
  if (auto loaded = load(vm, steps, urgent); !loaded) {
    std::ignore = side_.give_up(); // before it was ready: the source has the guest, whatever it hears of us
    enter(DestinationPhase::kGaveUp);
    refuse(loaded.error());
    return loaded;
  }
  streams_.clear(); // nothing more comes over them
  return await_decision(vm, steps);
}

std::expected<void, Error> Destination::load(vmm::Vm& vm, const DestinationSteps& steps,
                                             std::optional<vmm::UrgentForAWhile>& urgent) {
  if (auto fits = check_machine(options_.operation, view().vm, facts_, vm); !fits)
    return fits;
  // Not any more once all is there: await_decision() hears of it then, and has an answer.
  std::optional<std::stop_callback<std::function<void()>>> cut;
  cut.emplace(options_.stop, [this] { control_->link().cut(); });
  if (auto said = control_->voice().say(FrameKind::kAccepted, std::span<const std::byte>()); !said)
    return said;
  auto streams = doorkeeper_.await_streams(static_cast<uint16_t>(facts_.streams - 1), options_.stop);
  if (!streams)
    return std::unexpected(std::move(streams.error()));
  streams_ = *std::move(streams);
  PageReceiver receiver(options_.operation, vm.memory(), *control_, streams_, &progress_);
  std::optional<std::stop_callback<std::function<void()>>> cancel; // it may wait for a stream
  cancel.emplace(options_.stop, [&receiver] { receiver.cancel(); });
  const auto frame = receiver.receive();
  if (!frame)
    return std::unexpected(options_.stop.stop_requested() ? error("was cancelled") : frame.error());
  if (frame->kind != FrameKind::kState)
    return std::unexpected(control_->link().error("gave up: the guest stays there"));
  urgent.emplace();
  const auto state = decode_state(options_.operation, frame->payload);
  if (!state)
    return std::unexpected(state.error());
  if (auto whole = receiver.check(state->links); !whole)
    return whole;
  cancel.reset();
  cut.reset();
  if (options_.stop.stop_requested()) // it may have been cut already
    return std::unexpected(error("was cancelled"));
  return get_ready(vm, steps, *state);
}

std::expected<void, Error> Destination::get_ready(vmm::Vm& vm, const DestinationSteps& steps,
                                                  const StateMessage& state) {
  held_ = state.held;
  // It is the same guest: there is no other of it, and its clock goes on.
  const vmm::RestoreChoices choices{.new_generation = false, .wall_clock = options_.wall_clock};
  if (auto restored = vm.restore_state(state.sections, choices); !restored)
    return restored;
  if (steps.restore_more)
    if (auto restored = steps.restore_more(state.sections); !restored)
      return restored;
  if (auto started = vm.start(); !started) // its threads are there, and held
    return started;
  listen(); // before our word: what is answered to it is an event
  doorkeeper_.hand_over_to([this](std::unique_ptr<Call> call) { events_.push({.again = std::move(call)}); });
  enter(DestinationPhase::kReady);
  const Turn turn = side_.hear(Word::kPrepare, true);
  act(turn, vm, steps);
  return {};
}

void Destination::listen() {
  ear_ = std::make_unique<Ear>(*control_, std::vector{FrameKind::kWord, FrameKind::kRefusal},
                               [this, link = generation_](Ear::Heard heard) {
                                 return events_.push({.link = link, .heard = std::move(heard)});
                               });
}

std::expected<void, Error> Destination::await_decision(vmm::Vm& vm, const DestinationSteps& steps) {
  using State = DestinationSide::State;
  for (bool called_off = false;;) {
    if (side_.state() == State::kStarted) {
      answer_from_now_on();
      return {};
    }
    if (side_.state() == State::kGaveUp)
      break;
    if (auto event = events_.next(Clock::now() + kLook)) {
      hear(*std::move(event), vm, steps);
      continue;
    }
    if (Clock::now() >= cut_at_) {
      cut_at_ = Clock::time_point::max();
      control_->link().cut(); // which is heard of
    }
    if (options_.stop.stop_requested() && !std::exchange(called_off, true)) {
      reason_ = error("was ended before the source gave the guest away");
      act(side_.give_up(), vm, steps);
    } else if (side_.state() == State::kOrphaned && Clock::now() >= keep_until_) {
      reason_ = error("the source was lost, and did not come back in time");
      act(side_.give_up(), vm, steps);
    }
  }
  enter(DestinationPhase::kGaveUp);
  answer_for_a_while();
  return std::unexpected(reason_.value_or(error("the source took the guest back")));
}

void Destination::hear(Event event, vmm::Vm& vm, const DestinationSteps& steps) {
  if (event.start_here)
    return start_as_told(vm, steps);
  if (event.again)
    return take_again(std::move(event.again));
  if (event.link != generation_)
    return;
  if (!event.heard.link) {
    if (!reason_)
      reason_ = event.heard.link.error();
    return act(side_.lose_link(), vm, steps);
  }
  const Frame& frame = event.heard.frame;
  if (frame.kind == FrameKind::kRefusal) { // it kept the guest, and said nothing of a hand-over: an abandon as well
    reason_ = control_->refused_by(frame);
    return act(side_.give_up(), vm, steps);
  }
  const auto word = frame.kind == FrameKind::kWord ? decode_word(options_.operation, frame.payload)
                                                   : std::unexpected(control_->link().error("speaks out of turn"));
  if (!word) {
    reason_ = word.error();
    return act(side_.lose_link(), vm, steps);
  }
  hear_word(*word, vm, steps);
}

// An operator's word is as good as the source's commit, and needs the disks as well.
void Destination::start_as_told(vmm::Vm& vm, const DestinationSteps& steps) {
  if (side_.state() != DestinationSide::State::kOrphaned || options_.stop.stop_requested())
    return;
  if (auto locked = vm.lock_disks(); !locked)
    return options_.tell("the guest cannot be started here before its disks can be had: " +
                         locked.error().message());
  act(side_.told_to_start(), vm, steps);
}

// A commit gives us the guest; we take it only if we can have its disks.
void Destination::hear_word(Word word, vmm::Vm& vm, const DestinationSteps& steps) {
  using State = DestinationSide::State;
  const bool undecided = side_.state() == State::kReady || side_.state() == State::kOrphaned;
  // Its end was asked for, and perhaps promised, before the guest is ours: the source, which hears so, keeps it.
  if (word == Word::kCommit && undecided && options_.stop.stop_requested()) {
    reason_ = error("was ended before the source gave the guest away");
    return act(side_.give_up(), vm, steps);
  }
  if (word == Word::kCommit && undecided)
    if (auto locked = vm.lock_disks(); !locked) {
      reason_ = locked.error();
      return act(side_.give_up(), vm, steps);
    }
  if (word == Word::kAbandon && undecided) {
    if (!reason_)
      reason_ = error("the source took the guest back");
    needs_no_answer_ = generation_ == 0; // it has not said commit: the guest goes on there already
  }
  act(side_.hear(word), vm, steps);
}

void Destination::act(const Turn& turn, vmm::Vm& vm, const DestinationSteps& steps) {
  if (turn.run_guest) {
    steps.let_go(held_);
    enter(DestinationPhase::kRunning);
  }
  if (turn.say) {
    told_ = control_->voice().say(FrameKind::kWord, encode(*turn.say)).has_value();
    // Whoever hung up may have said why before: that is still to be read, and the link's end after it.
    if (!told_)
      cut_at_ = Clock::now() + kLastWords;
  }
  if (turn.drop_guest)
    vm.request_end({vmm::EndKind::kRequested, ""});
  if (side_.state() == DestinationSide::State::kOrphaned && view().phase != DestinationPhase::kOrphaned) {
    control_->link().cut(); // it may carry our signs of life still: a source that hears them does not call again
    enter(DestinationPhase::kOrphaned);
    keep_until_ = Clock::now() + std::chrono::duration_cast<Clock::duration>(options_.keep);
    options_.tell("the link to the source broke when all was ready (" + (reason_ ? reason_->reason : "") +
                  "): the guest is held here, and the source is waited for. Where the source has ended, 'stopvisor "
                  "resume' starts it here");
  }
}

std::expected<void, Error> Destination::start_here() {
  if (view().phase != DestinationPhase::kOrphaned)
    return std::unexpected(
        error("the guest is still the source's: it can be started here only where the link to it was lost",
              Status::kRefused));
  events_.push({.start_here = true});
  return {};
}

// What a source that did not hear our word is told: the same as before. RETURNS: whether it hung up.
bool Destination::answer(Event event) {
  if (event.start_here)
    return false;
  if (event.again) {
    take_again(std::move(event.again));
    return false;
  }
  if (event.link != generation_)
    return false;
  if (!event.heard.link)
    return true;
  const auto word = event.heard.frame.kind == FrameKind::kWord
                        ? decode_word(options_.operation, event.heard.frame.payload)
                        : std::unexpected(Error{});
  if (word)
    if (const Turn turn = side_.hear(*word); turn.say) // lost: it asks once more
      told_ = control_->voice().say(FrameKind::kWord, encode(*turn.say)).has_value();
  return false;
}

// A source that did not hear that the guest runs here asks again, for as long as it does.
void Destination::answer_from_now_on() {
  answering_ = std::jthread([this](const std::stop_token& stop) {
    while (!stop.stop_requested())
      if (auto event = events_.next(Clock::now() + kLook))
        (void)answer(*std::move(event));
  });
}

// The guest will never run here. A source that has heard so hangs up; one that is in doubt and can be reached calls
// within a second or two, and what it would hear from nobody any more, it would have to ask its operator.
void Destination::answer_for_a_while() {
  if (needs_no_answer_)
    return;
  const auto until = Clock::now() + kAnswersFor;
  for (bool hung_up = false; Clock::now() < until && !(hung_up && told_);)
    if (auto event = events_.next(Clock::now() + kLook))
      hung_up = answer(*std::move(event));
}

void Destination::take_again(std::unique_ptr<Call> call) {
  told_ = false;
  reason_.reset(); // how the older link ended does not matter any more
  cut_at_ = Clock::time_point::max();
  ear_.reset(); // what comes by the older link is not read any more
  control_ = std::move(call);
  ++generation_;
  listen();
}

} // namespace stopvisor::migrate
