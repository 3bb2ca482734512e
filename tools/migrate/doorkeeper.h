// SPDX-License-Identifier: Apache-2.0
// Who stands at a destination's door: lets one migration in, and then those alone who know its id.
//
// Anybody can call: a port scanner, a browser, an old version of ours, someone who says nothing. Each is heard on a
// thread of its own for some seconds at most, so that no stranger keeps the source waiting, and sent away by name.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <expected>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "tools/migrate/call.h"
#include "tools/migrate/link.h"
#include "vmm/error.h"

namespace stopvisor::migrate {

class Doorkeeper {
public:
  static constexpr std::chrono::seconds kPatience{5}; // with who has not said hello
  static constexpr size_t kMostAtOnce = 16;           // of those

  // `listener` outlives the object. `tell` hears of each stranger, on any thread.
  Doorkeeper(std::string operation, Listener& listener, std::function<void(const vmm::Error&)> tell);
  // Sends everybody away.
  ~Doorkeeper();
  Doorkeeper(const Doorkeeper&) = delete;
  Doorkeeper& operator=(const Doorkeeper&) = delete;

  // The first source that says a good hello; it is welcomed, and others are refused until let_another_in().
  // CONTEXT: one thread; blocks. RETURNS: "was cancelled", kFailed where nobody can come any more.
  [[nodiscard]] std::expected<std::unique_ptr<Call>, vmm::Error> await_source(const std::stop_token& stop);
  // The source that came is gone, and said nothing of use: its streams are cut, and another may come.
  // CONTEXT: the thread of await_source(), after the source's call is gone, and never after hand_over_to().
  void let_another_in();
  // Streams 1 to `count` of that migration, in their order. RETURNS: the same, and kFailed where one did not come.
  [[nodiscard]] std::expected<std::vector<std::unique_ptr<Call>>, vmm::Error>
  await_streams(uint16_t count, const std::stop_token& stop);
  // Who dials again, for that migration, is handed to `again` from now on, welcomed; null: refused again.
  // CONTEXT of `again`: a thread of the doorkeeper's, one at a time; it must not block.
  void hand_over_to(std::function<void(std::unique_ptr<Call>)> again);

private:
  struct Greeter {
    std::thread thread;
    bool done = false; // under mutex_
  };
  void serve();
  void make_room(const std::stop_token& stop);
  void greet(std::unique_ptr<Link> link);
  [[nodiscard]] std::optional<vmm::Error> admit(std::unique_ptr<Call>& call);
  [[nodiscard]] std::optional<vmm::Error> admit_source(std::unique_ptr<Call>& call);
  [[nodiscard]] std::optional<vmm::Error> admit_stream(std::unique_ptr<Call>& call);
  [[nodiscard]] std::optional<vmm::Error> admit_again(std::unique_ptr<Call>& call);
  using Streams = std::map<uint16_t, std::unique_ptr<Call>>; // by their numbers; null: it is being answered
  [[nodiscard]] Streams forget_source();                     // under mutex_; what it returns goes outside of it
  [[nodiscard]] bool knows(const MigrationId& id) const noexcept; // under mutex_
  void bury(bool all);

  const std::string operation_;
  Listener& listener_;
  const std::function<void(const vmm::Error&)> tell_;
  std::stop_source ending_;

  std::mutex mutex_; // a leaf
  std::condition_variable_any changed_;
  std::list<Greeter> greeters_; // this and the following under mutex_
  std::optional<vmm::Error> closed_;
  bool taken_ = false;      // a source was welcomed
  bool called_off_ = false; // nobody waits for one any more
  MigrationId id_{};
  std::unique_ptr<Call> source_;
  Streams streams_;

  std::mutex again_mutex_; // held over a call of again_; before mutex_
  std::function<void(std::unique_ptr<Call>)> again_;

  std::thread thread_; // last
};

} // namespace stopvisor::migrate
