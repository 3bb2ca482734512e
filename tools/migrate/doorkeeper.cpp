// SPDX-License-Identifier: Apache-2.0
#include "tools/migrate/doorkeeper.h"

#include <algorithm>
#include <system_error>
#include <utility>

namespace stopvisor::migrate {
namespace {

using vmm::Error;
using vmm::Status;

constexpr std::chrono::milliseconds kLook{1000}; // how long accept() waits in one go
constexpr std::chrono::seconds kStreamsComeWithin{10};

// Who knows the id may join: it must not be found out by how long a comparison takes.
bool same_id(const MigrationId& one, const MigrationId& other) noexcept {
  std::byte differs{0};
  for (size_t i = 0; i < one.size(); ++i)
    differs |= one[i] ^ other[i];
  return differs == std::byte{0};
}

Error late(Call& call) {
  return call.link().error("is late: nobody waits for a guest here any more");
}

} // namespace

Doorkeeper::Doorkeeper(std::string operation, Listener& listener, std::function<void(const Error&)> tell)
    : operation_(std::move(operation)), listener_(listener), tell_(std::move(tell)), thread_([this] { serve(); }) {}

Doorkeeper::~Doorkeeper() {
  ending_.request_stop(); // who has not said hello is cut
  thread_.join();
  bury(true);
}

// Waits for greeters that are done, or for all of them.
void Doorkeeper::bury(bool all) {
  std::list<Greeter> dead;
  {
    const std::lock_guard guard(mutex_);
    for (auto greeter = greeters_.begin(); greeter != greeters_.end();) {
      const auto next = std::next(greeter);
      if (all || greeter->done)
        dead.splice(dead.end(), greeters_, greeter);
      greeter = next;
    }
  }
  for (Greeter& greeter : dead)
    greeter.thread.join();
}

// A crowd of strangers waits outside, until one of those inside has gone.
void Doorkeeper::make_room(const std::stop_token& stop) {
  for (bool crowded = true; crowded && !stop.stop_requested();) {
    bury(false);
    std::unique_lock lock(mutex_);
    crowded = greeters_.size() >= kMostAtOnce;
    if (crowded)
      (void)changed_.wait(lock, stop, [this] { return std::ranges::any_of(greeters_, &Greeter::done); });
  }
}

void Doorkeeper::serve() {
  const std::stop_token stop = ending_.get_token();
  while (!stop.stop_requested()) {
    make_room(stop);
    auto link = listener_.accept(stop, kLook);
    if (!link) {
      const std::lock_guard guard(mutex_);
      closed_ = std::move(link.error());
      changed_.notify_all();
      return;
    }
    if (*link == nullptr)
      continue;
    const std::lock_guard guard(mutex_);
    Greeter& greeter = greeters_.emplace_back();
    try {
      greeter.thread = std::thread([this, &greeter, caller = std::move(*link)]() mutable {
        greet(std::move(caller));
        const std::lock_guard done(mutex_);
        greeter.done = true;
        changed_.notify_all();
      });
    } catch (const std::system_error&) { // the host has no threads: the caller hears that we hung up
      greeters_.pop_back();
    }
  }
}

void Doorkeeper::greet(std::unique_ptr<Link> link) {
  auto call = Call::take(operation_, std::move(link), kPatience, ending_.get_token());
  std::optional<Error> trouble;
  if (call)
    trouble = admit(*call);
  else
    trouble = std::move(call.error());
  if (!trouble)
    return;
  if (call && *call != nullptr)
    (*call)->refuse(*trouble);
  if (!ending_.stop_requested())
    tell_(*trouble);
}

std::optional<Error> Doorkeeper::admit(std::unique_ptr<Call>& call) {
  switch (call->hello().role) {
  case LinkRole::kControl:
    return admit_source(call);
  case LinkRole::kStream:
    return admit_stream(call);
  case LinkRole::kAgain:
    return admit_again(call);
  }
  return call->link().error("wants to be something unheard of");
}

std::optional<Error> Doorkeeper::admit_source(std::unique_ptr<Call>& call) {
  {
    const std::lock_guard guard(mutex_);
    if (called_off_)
      return late(*call);
    if (taken_) {
      Error busy = call->link().error("another migration is arriving here already");
      busy.status = Status::kBusy;
      return busy;
    }
    taken_ = true;          // others are refused while this one is answered
    id_ = call->hello().id; // and once it is, its streams may come
  }
  auto answered = call->answer();
  Streams cut; // that came in the meantime; outside of the lock
  const std::lock_guard guard(mutex_);
  if (!answered) {
    cut = forget_source();
    return std::move(answered.error());
  }
  if (called_off_)
    return late(*call);
  source_ = std::move(call);
  changed_.notify_all();
  return {};
}

std::optional<Error> Doorkeeper::admit_stream(std::unique_ptr<Call>& call) {
  const uint16_t number = call->hello().number;
  {
    const std::lock_guard guard(mutex_);
    if (called_off_)
      return late(*call);
    if (!knows(call->hello().id))
      return call->link().error("belongs to no migration that arrives here");
    if (number == 0 || streams_.contains(number))
      return call->link().error("is a stream that is there already");
    streams_.emplace(number, nullptr);
  }
  auto answered = call->answer();
  const std::lock_guard guard(mutex_);
  const bool known = knows(call->hello().id); // or its source was forgotten meanwhile
  if (!answered) {
    if (known)
      streams_.erase(number);
    return std::move(answered.error());
  }
  if (called_off_)
    return late(*call);
  if (!known)
    return call->link().error("belongs to no migration that arrives here");
  streams_[number] = std::move(call);
  changed_.notify_all();
  return {};
}

std::optional<Error> Doorkeeper::admit_again(std::unique_ptr<Call>& call) {
  // Held first: where again_ is there, the id is its migration's, and that does not change any more.
  const std::lock_guard guard(again_mutex_);
  {
    const std::lock_guard known(mutex_);
    if (!knows(call->hello().id))
      return call->link().error("asks for a migration that is not known here");
  }
  if (!again_)
    return call->link().error("asks for a migration of which nothing was decided here");
  if (auto answered = call->answer(); !answered)
    return std::move(answered.error());
  again_(std::move(call));
  return {};
}

std::expected<std::unique_ptr<Call>, Error> Doorkeeper::await_source(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  const auto nobody_can_come = [this] { // who came before the door was closed is heard still
    return closed_.has_value() && std::ranges::all_of(greeters_, &Greeter::done);
  };
  if (!changed_.wait(lock, stop, [&] { return source_ != nullptr || nobody_can_come(); })) {
    called_off_ = true; // who comes now is not kept waiting by our signs of life
    return std::unexpected(Error{operation_, listener_.place(), "was cancelled", Status::kFailed});
  }
  if (source_ == nullptr)
    return std::unexpected(
        closed_.value_or(Error{operation_, listener_.place(), "was cancelled", Status::kFailed}));
  return std::move(source_);
}

void Doorkeeper::let_another_in() {
  Streams cut; // outside of the lock
  const std::lock_guard guard(mutex_);
  cut = forget_source();
}

Doorkeeper::Streams Doorkeeper::forget_source() {
  taken_ = false;
  id_ = {};
  return std::exchange(streams_, {});
}

bool Doorkeeper::knows(const MigrationId& id) const noexcept {
  return taken_ && same_id(id_, id);
}

std::expected<std::vector<std::unique_ptr<Call>>, Error> Doorkeeper::await_streams(uint16_t count,
                                                                                   const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  const auto all_there = [&] {
    for (uint16_t number = 1; number <= count; ++number)
      if (const auto found = streams_.find(number); found == streams_.end() || found->second == nullptr)
        return false;
    return true;
  };
  const bool came = changed_.wait_for(lock, stop, kStreamsComeWithin, all_there);
  if (stop.stop_requested() || !came) {
    called_off_ = true; // who is there or comes yet learns at once that nobody reads, and not by patience
    streams_.clear();
    return std::unexpected(Error{operation_, listener_.place(),
                                 stop.stop_requested() ? "was cancelled" : "not all streams of the migration came",
                                 Status::kFailed});
  }
  std::vector<std::unique_ptr<Call>> streams;
  for (uint16_t number = 1; number <= count; ++number)
    streams.push_back(std::move(streams_[number]));
  return streams;
}

void Doorkeeper::hand_over_to(std::function<void(std::unique_ptr<Call>)> again) {
  const std::lock_guard guard(again_mutex_);
  again_ = std::move(again);
}

} // namespace stopvisor::migrate
