// SPDX-License-Identifier: Apache-2.0
// What a Source is made of while it runs. Private to source*.cpp.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <utility>
#include <vector>

#include "tools/migrate/call.h"
#include "tools/migrate/event_queue.h"
#include "tools/migrate/handover.h"
#include "tools/migrate/page_sender.h"
#include "tools/migrate/source.h"
#include "vmm/dirty_log.h"
#include "vmm/dirty_pages.h"

namespace stopvisor::migrate {

// What happens to a source: something was heard, or an operator has spoken.
struct SourceEvent {
  uint64_t link = 0; // which control link: one that was given up has nothing to say
  Ear::Heard heard{};
  std::optional<OperatorWord> word{};
  std::optional<Address> other{};
};

// What other threads see of it, and say to it.
struct Source::Shared {
  EventQueue<SourceEvent> events;
  mutable std::mutex mutex; // a leaf
  View view;                // under mutex
};

// The links to one destination and what goes over them.
class Source::Connection {
public:
  Connection(vmm::Vm& vm, EventQueue<SourceEvent>& events) : pages(vm.memory().slots()), events_(events) {}
  // Nobody is left waiting for a peer that does not read.
  ~Connection() {
    cut();
    sender.reset();
    ear_.reset();
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void cut() noexcept {
    if (control)
      control->link().cut();
    for (const auto& stream : streams)
      stream->link().cut();
  }
  // From now on what comes on the control link is an event.
  void listen() {
    ear_ = std::make_unique<Ear>(
        *control, std::vector{FrameKind::kRoundDone, FrameKind::kWord, FrameKind::kRefusal},
        [this, link = generation](Ear::Heard heard) {
          if (!heard.link) // nobody reads pages any more: who sends some is not to find that out by patience
            for (const auto& stream : streams)
              stream->link().cut();
          return events_.push({.link = link, .heard = std::move(heard)});
        });
  }
  // Of a link that failed: what the other side had said before, where it did, or how the control link ended, for
  // which the streams are cut. CONTEXT: as the events'; blocks for a moment.
  [[nodiscard]] vmm::Error last_word(vmm::Error error);
  // Another link in the place of the control link, whose events are of no interest any more.
  void replace(std::unique_ptr<Call> call) {
    ear_.reset();
    control->link().leave_alone(); // what is behind it may run the guest
    control = std::move(call);
    ++generation;
    listen();
  }

  std::unique_ptr<Call> control;
  std::vector<std::unique_ptr<Call>> streams;
  std::unique_ptr<PageSender> sender;
  std::unique_ptr<vmm::DirtyLog> log;
  vmm::DirtyPages pages; // to be sent
  uint32_t round = 0;    // the next one
  uint64_t generation = 0;

private:
  EventQueue<SourceEvent>& events_;
  std::unique_ptr<Ear> ear_;
};

// The hand-over, from the guest held to the moment when it is known who runs it.
class Source::Switch {
public:
  Switch(Source& source, Connection& connection)
      : source_(source), connection_(connection), redial_(source.options_.to) {}

  enum class Outcome : uint8_t { kHere, kGone, kEnded };
  // CONTEXT: a callback under a stop, which it does not leave before all is decided.
  [[nodiscard]] Outcome run() noexcept;
  // Why it is not gone. CONTEXT: after run().
  [[nodiscard]] const vmm::Error& reason() const noexcept { return reason_; }
  // Whether a destination may have everything, and not have heard that the guest goes on here. CONTEXT: after
  // run().
  [[nodiscard]] bool unheard() const noexcept { return unheard_; }
  // Calls it again to say so, for some seconds at most: it would keep the guest ready for its limit of time, and an
  // operator who took it for orphaned would run it twice. CONTEXT: not under a stop: the guest runs.
  void take_back();

private:
  using Clock = std::chrono::steady_clock;

  [[nodiscard]] std::expected<void, vmm::Error> send_rest();
  [[nodiscard]] Outcome decide();
  void look_around();
  void leave_waiting();
  void lose_link();
  [[nodiscard]] bool heard_of_abandon();
  void hear(SourceEvent event);
  void hear_frame(const Frame& frame);
  void obey(OperatorWord word, const std::optional<Address>& other);
  void act(const Turn& turn);
  void say(Word word);
  void go_on_here();
  void enter_doubt();
  void dial_again();
  void because(vmm::Error reason);
  [[nodiscard]] bool in(SourceSide::State state) const noexcept { return side_.state() == state; }

  Source& source_;
  Connection& connection_;
  SourceSide side_;
  Clock::time_point begin_{};
  Clock::time_point ready_by_{};
  Clock::time_point dial_at_{};
  Clock::time_point cut_at_ = Clock::time_point::max();
  Clock::time_point answer_by_ = Clock::time_point::max(); // in kDecided
  vmm::Error reason_;
  bool asked_to_give_up_ = false;
  bool lost_ = false; // the link, as far as one heard
  bool unheard_ = false;
  bool unlocked_ = false; // our locks on the disks were given back
  bool in_doubt_ = false; // and said so
  bool go_on_ = true;     // what the destination is told when it is dialled again
  Address redial_;        // where
  std::optional<Outcome> outcome_;
};

} // namespace stopvisor::migrate
