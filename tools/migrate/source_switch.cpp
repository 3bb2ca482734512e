// SPDX-License-Identifier: Apache-2.0
// The hand-over as the source makes it: docs/adr/0024-hand-over.md. What is decided is decided by SourceSide; here
// is what happens to it, and what is done about its answers.
//
// Everything happens in one callback under a stop. Others' callbacks (poke, a patch) wait for their own deadlines
// meanwhile, so that nobody changes a guest that is elsewhere already, and nobody believes to have.
#include <algorithm>
#include <thread>
#include <utility>

#include "tools/migrate/source_parts.h"
#include "tools/migrate/waiting.h"

namespace stopvisor::migrate {
namespace {

using vmm::Error;
using vmm::Status;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kLook{
    100}; // how often it is looked whether the VM ends, or the job is cancelled
constexpr std::chrono::seconds kDialEvery{1};
constexpr std::chrono::seconds kAnswerWithin{10}; // to a commit or an abandon: disks are locked first
constexpr std::chrono::seconds kHeardWithin{1};   // the abandon of a guest that goes on here
constexpr std::chrono::milliseconds kTakeBackEvery{250};
constexpr std::chrono::seconds kTakeBackWithin{5};
constexpr std::chrono::seconds kLastWords{1};       // on a link that cannot be written to any more
constexpr std::chrono::seconds kLeastToGetReady{2}; // for the destination, from the guest's hold on

// Where one can be called a second time.
bool can_be_dialled_again(const Address& address) noexcept {
  return address.kind == AddressKind::kUnix || address.kind == AddressKind::kTcp;
}

// Asked to stop as soon as the VM is to end, or the time is over: for what blocks under the stop that the VM's end
// waits for, or after it.
class UntilEnd {
public:
  explicit UntilEnd(const vmm::Vm& vm, Clock::time_point until = Clock::time_point::max())
      : thread_([this, &vm, until](const std::stop_token& stop) {
          while (vm.state() != vmm::VmState::kEnded && Clock::now() < until &&
                 sleep_until(std::min(until, after(kLook)), stop)) {
          }
          source_.request_stop();
        }) {}
  [[nodiscard]] std::stop_token token() const noexcept { return source_.get_token(); }

private:
  std::stop_source source_;
  std::jthread thread_;
};

} // namespace

void Source::Switch::because(Error reason) {
  if (reason_.reason.empty()) // the first reason is the one
    reason_ = std::move(reason);
}

Source::Switch::Outcome Source::Switch::run() noexcept {
  begin_ = Clock::now();
  ready_by_ = begin_ + std::max<Clock::duration>(kLeastToGetReady, 10 * std::chrono::duration_cast<Clock::duration>(
                                                                            source_.options_.max_downtime));
  Error moving = source_.error("the VM is being migrated to " + source_.options_.to.text, Status::kBusy);
  source_.around_.holds.close(std::move(moving));
  if (auto sent = send_rest(); !sent) {     // nothing was said of a hand-over: the guest is ours
    auto goes_on = source_.check_goes_on(); // and not that a link was cut for it
    because(goes_on ? std::move(sent.error()) : std::move(goes_on.error()));
    source_.around_.holds.open();
    return source_.vm_.state() == vmm::VmState::kEnded ? Outcome::kEnded : Outcome::kHere;
  }
  const Outcome outcome = decide();
  if (outcome == Outcome::kHere)
    source_.around_.holds.open();
  return outcome;
}

// The last pages and the state: after it the destination has everything.
std::expected<void, Error> Source::Switch::send_rest() {
  Connection& to = connection_;
  if (auto taken = to.log->take(to.pages); !taken)
    return taken;
  const uint64_t pages = to.pages.count();
  to.sender->begin(to.round, to.pages, true);
  auto sections = source_.vm_.save_state(); // while they are sent
  auto flushed = source_.vm_.flush_disks();
  const auto sent = to.sender->finish();
  if (!sent)
    return std::unexpected(to.last_word(sent.error()));
  if (!sections)
    return std::unexpected(std::move(sections.error()));
  if (!flushed)
    return flushed;
  StateMessage message;
  message.sections = *std::move(sections);
  if (source_.around_.add_state)
    source_.around_.add_state(message.sections);
  message.held = std::ranges::any_of(source_.around_.holds.list(),
                                     [](const vmm::Hold& hold) { return hold.kind == vmm::Hold::Kind::kPause; });
  const auto add = [&](Call& call, uint16_t number) {
    const FrameTally tally = call.voice().tally();
    message.links.push_back({number, tally.frames, tally.digest});
  };
  add(*to.control, 0);
  for (size_t stream = 0; stream < to.streams.size(); ++stream)
    add(*to.streams[stream], static_cast<uint16_t>(stream + 1));
  const auto bytes = encode(message);
  if (!bytes)
    return std::unexpected(bytes.error());
  if (auto said = to.control->voice().say(FrameKind::kState, *bytes); !said) {
    unheard_ = true; // it may have been heard all the same, but no answer gives it the guest before our commit
    return std::unexpected(to.last_word(std::move(said.error())));
  }
  const std::lock_guard guard(source_.shared_->mutex);
  SourceFigures& figures = source_.shared_->view.figures;
  figures.rounds.push_back({to.round, pages, Clock::now() - begin_, 1.0});
  ++figures.rounds_made;
  return {};
}

Source::Switch::Outcome Source::Switch::decide() {
  (void)SourceSide::begin(); // kPrepare: the state was that word
  ready_by_ = std::max<Clock::time_point>(ready_by_, Clock::now() + kLeastToGetReady); // it had to come first
  while (!outcome_) {
    const auto until =
        in(SourceSide::State::kWaits) ? std::min(Clock::now() + kLook, ready_by_) : Clock::now() + kLook;
    if (auto event = source_.shared_->events.next(until))
      hear(*std::move(event));
    else
      look_around();
  }
  return *outcome_;
}

// Nothing was heard for a moment.
void Source::Switch::look_around() {
  if (source_.vm_.state() == vmm::VmState::kEnded) {
    // An ending by force is the operator's word, as a death is: before our commit nobody has the guest then; after
    // it, whoever has it keeps it.
    because(source_.error(in(SourceSide::State::kWaits)
                              ? "the VM ended meanwhile"
                              : "the VM was ended here while it was in doubt whether the destination runs it"));
    if (in(SourceSide::State::kWaits))
      act(side_.give_up());
    else
      connection_.control->link().leave_alone(); // what is behind it may run the guest
    outcome_ = Outcome::kEnded;
    return;
  }
  if (source_.around_.stop.stop_requested() && !std::exchange(asked_to_give_up_, true)) {
    because(source_.error("was cancelled"));
    go_on_ = false; // where it is asked again
    leave_waiting();
  }
  if (in(SourceSide::State::kWaits) && Clock::now() >= ready_by_) {
    because(connection_.control->link().error("did not get ready in time; the guest goes on here"));
    leave_waiting();
  }
  if (in(SourceSide::State::kDecided) && Clock::now() >= answer_by_) { // alive, perhaps, and not able to decide
    answer_by_ = Clock::time_point::max();
    because(connection_.control->link().error("does not say whether it runs the guest"));
    connection_.control->link().cut(); // which is heard of: its operator, and it itself, can be asked then
  }
  if (Clock::now() >= cut_at_) {
    cut_at_ = Clock::time_point::max();
    connection_.control->link().cut(); // which is heard of
  }
  if (in(SourceSide::State::kDoubts) && Clock::now() >= dial_at_)
    dial_again();
}

// The abandon may go into a link that carries nothing any more.
void Source::Switch::leave_waiting() {
  unheard_ = unheard_ || in(SourceSide::State::kWaits);
  act(side_.give_up());
}

void Source::Switch::hear(SourceEvent event) {
  if (in(SourceSide::State::kWaits)) { // what was asked for by now comes before a commit
    look_around();
    if (outcome_)
      return;
  }
  if (event.word)
    return obey(*event.word, event.other);
  if (event.link != connection_.generation) // of a link that was given up
    return;
  if (event.heard.link)
    return hear_frame(event.heard.frame);
  because(event.heard.link.error());
  lost_ = true;
  lose_link();
}

void Source::Switch::lose_link() {
  unheard_ = in(SourceSide::State::kWaits);
  act(side_.lose_link());
}

void Source::Switch::hear_frame(const Frame& frame) {
  if (frame.kind == FrameKind::kRoundDone) // of the last round: the word that matters comes after it
    return;
  if (frame.kind == FrameKind::kRefusal) {
    because(connection_.control->refused_by(frame));
    if (in(SourceSide::State::kWaits))
      act(side_.give_up());
    return; // after our commit only its word counts
  }
  const auto word = frame.kind == FrameKind::kWord
                        ? decode_word(source_.options_.operation, frame.payload)
                        : std::unexpected(connection_.control->link().error("speaks out of turn"));
  if (!word) {
    because(word.error());
    lose_link();
    return;
  }
  if (*word == Word::kPrepared && in(SourceSide::State::kWaits)) {
    const std::lock_guard guard(source_.shared_->mutex);
    source_.shared_->view.figures.until_ready = Clock::now() - begin_;
  }
  if (*word == Word::kAbandoned)
    because(connection_.control->link().error("gave up before it ran the guest, which goes on here"));
  act(side_.hear(*word));
}

void Source::Switch::obey(OperatorWord word, const std::optional<Address>& other) {
  switch (word) {
  case OperatorWord::kRunHere:
  case OperatorWord::kDrop:
    return act(side_.told(word == OperatorWord::kRunHere));
  case OperatorWord::kAsk:
  case OperatorWord::kTakeBack:
    go_on_ = word == OperatorWord::kAsk;
    if (other)
      redial_ = *other;
    dial_at_ = Clock::now();
    return;
  }
}

void Source::Switch::act(const Turn& turn) {
  if (turn.run_guest)
    go_on_here();
  if (turn.drop_guest) {
    {
      const std::lock_guard guard(source_.shared_->mutex);
      source_.shared_->view.figures.downtime = Clock::now() - begin_;
      source_.shared_->view.figures.total = Clock::now() - source_.begin_;
    }
    connection_.control->link().leave_alone(); // a command of exec: is, or leads to, the process that has the guest
    const std::string where = source_.options_.to.text;
    source_.vm_.write_to_console(source_.vm_.config().name + " goes on at " + where);
    source_.enter(SourcePhase::kGone, "gone"); // before the VM ends: who waits for that asks whether it is gone
    source_.vm_.request_end({vmm::EndKind::kMigrated, where}); // under the stop: not one instruction more
    outcome_ = Outcome::kGone;
  }
  if (turn.say)
    say(*turn.say);
  if (in(SourceSide::State::kDoubts) && !in_doubt_)
    enter_doubt();
}

void Source::Switch::say(Word word) {
  if (word == Word::kCommit && !std::exchange(unlocked_, true))
    source_.vm_.unlock_disks(); // or the destination could not take them
  answer_by_ = Clock::now() + kAnswerWithin;
  const auto said = connection_.control->voice().say(FrameKind::kWord, encode(word));
  if (!said && outcome_ == Outcome::kHere)
    unheard_ = true;
  if (!said && !outcome_) {
    because(said.error());
    cut_at_ = Clock::now() + kLastWords; // what it had said before it hung up is still to be read
  }
}

// The guest is ours again. Its disks are not before they are locked: somebody may have taken them since.
void Source::Switch::go_on_here() {
  because(source_.error("the guest goes on here"));
  bool told = false;
  while (unlocked_) {
    const auto locked = source_.vm_.lock_disks();
    unlocked_ = !locked;
    if (locked)
      break;
    if (source_.vm_.state() == vmm::VmState::kEnded) {
      outcome_ = Outcome::kEnded;
      return;
    }
    if (!std::exchange(told, true))
      source_.around_.tell("the guest is to go on here, and cannot before its disks can be had: " +
                           locked.error().message());
    (void)source_.shared_->events.next(Clock::now() + kLook);
  }
  outcome_ = Outcome::kHere;
}

void Source::Switch::enter_doubt() {
  in_doubt_ = true;
  connection_.control->link().cut(); // it may carry our signs of life still: nobody is to wait for more of it
  {
    const std::lock_guard guard(source_.shared_->mutex);
    source_.shared_->view.phase = SourcePhase::kDoubt;
    source_.shared_->view.doubt = reason_.reason;
  }
  source_.around_.begin_phase("in doubt");
  const bool dials = can_be_dialled_again(redial_);
  dial_at_ = dials ? Clock::now() : Clock::time_point::max();
  source_.around_.tell(
      "it is in doubt whether " + redial_.text + " runs the guest (" + reason_.reason + "). It is held here" +
      (dials ? ", and the destination is asked again each second" : "") +
      ". Where the destination has ended and says that the guest never ran there, 'stopvisor migrate " +
      source_.vm_.config().name + " --run-here' lets it go on here; where it runs there, '--drop' ends it here");
}

// Whether the destination said that it will not run the guest, or why it gave up, by the link there was.
bool Source::Switch::heard_of_abandon() {
  while (auto event = source_.shared_->events.next(Clock::now() + kHeardWithin)) {
    if (event->word || event->link != connection_.generation)
      continue;
    if (!event->heard.link)
      return false;
    const Frame& frame = event->heard.frame;
    if (frame.kind == FrameKind::kRefusal)
      return true;
    const auto word = frame.kind == FrameKind::kWord ? decode_word(source_.options_.operation, frame.payload)
                                                     : std::unexpected(Error{});
    if (word && *word == Word::kAbandoned)
      return true;
  }
  return false;
}

void Source::Switch::take_back() {
  source_.around_.begin_phase("taking the guest back");
  if ((!lost_ && heard_of_abandon()) || !can_be_dialled_again(source_.options_.to))
    return;
  connection_.control->link().cut(); // or the destination might hope for more of it
  Hello hello = connection_.control->hello();
  hello.role = LinkRole::kAgain;
  const UntilEnd end(source_.vm_, Clock::now() + kTakeBackWithin);
  const std::stop_token stop = end.token();
  do {
    auto call = Call::make(source_.options_.operation, source_.options_.to, source_.options_.insecure, hello, stop);
    if (!call && call.error().status == Status::kBusy && !call.error().reason.starts_with("refuses: "))
      return; // nobody waits there any more
    if (!call)
      continue;
    const std::stop_callback cut(stop, [&] { (*call)->link().cut(); });
    const auto said = (*call)->voice().say(FrameKind::kWord, encode(Word::kAbandon));
    const auto frame = said ? (*call)->expect(FrameKind::kWord) : std::unexpected(said.error());
    const auto word =
        frame ? decode_word(source_.options_.operation, frame->payload) : std::unexpected(frame.error());
    if (word && *word == Word::kRunning) // a commit was never said: somebody told it to
      source_.around_.tell(source_.options_.to.text +
                           " was told by an operator to run the guest, which goes on here as "
                           "well: end one of them at once");
    if (word)
      return;
  } while (sleep_until(after(kTakeBackEvery), stop));
}

void Source::Switch::dial_again() {
  dial_at_ = Clock::now() + kDialEvery;
  Hello hello = connection_.control->hello();
  hello.role = LinkRole::kAgain;
  std::expected<std::unique_ptr<Call>, Error> call;
  {
    const UntilEnd end(source_.vm_);
    call = Call::make(source_.options_.operation, redial_, source_.options_.insecure, hello, end.token());
  }
  // What was said meanwhile comes before what is asked. Other events are of the link that is gone.
  const std::string asked = redial_.text;
  while (auto event = source_.shared_->events.next(Clock::now()))
    if (event->word)
      obey(*event->word, event->other);
  if (source_.around_.stop.stop_requested())
    go_on_ = false;
  if (!in(SourceSide::State::kDoubts) || redial_.text != asked)
    return;
  if (!call) {
    const std::lock_guard guard(source_.shared_->mutex);
    source_.shared_->view.doubt = call.error().message();
    return;
  }
  connection_.replace(*std::move(call));
  cut_at_ = Clock::time_point::max();
  in_doubt_ = false;
  source_.enter(SourcePhase::kSwitching, "asking the destination"); // an operator's word would come too late now
  act(side_.dialled_again(go_on_));
}

} // namespace stopvisor::migrate
