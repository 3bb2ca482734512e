// SPDX-License-Identifier: Apache-2.0
// The destination's side of a migration: from the door to the moment when it is known who runs the guest.
//
//   waiting ──▶ loading ──▶ ready ──▶ running
//                  │          └──▶ orphaned ──▶ running, or given up
//                  └──────────────────────────▶ given up
//
// The machine is made as soon as the source has said what it is, its memory is filled while the guest runs
// elsewhere, and its threads are there, held, before the source is told that all is ready: what is left is to let
// go.
#pragma once

#include <chrono>
#include <cstdint>
#include <expected>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "tools/migrate/doorkeeper.h"
#include "tools/migrate/event_queue.h"
#include "tools/migrate/handover.h"
#include "tools/migrate/messages.h"
#include "vmm/error.h"
#include "vmm/progress.h"
#include "vmm/restore_choices.h"
#include "vmm/urgent_thread.h"
#include "vmm/vm.h"

namespace stopvisor::migrate {

class PageReceiver;

struct DestinationOptions {
  std::string operation = "run --incoming";
  vmm::WallClock wall_clock = vmm::WallClock::kResume;
  // How long a guest that is ready waits for a source that was lost.
  std::chrono::nanoseconds keep = std::chrono::minutes(5);
  std::stop_token stop;
  std::function<void(const std::string&)> tell; // for the log; any thread
};

enum class DestinationPhase : uint8_t { kWaiting, kLoading, kReady, kOrphaned, kRunning, kGaveUp };
[[nodiscard]] const char* name_of(DestinationPhase phase) noexcept;

// What is to be done with the machine, by whoever owns it. CONTEXT: the thread of receive().
struct DestinationSteps {
  // The state that the Vm passes over. RETURNS: what is wrong with it.
  std::function<std::expected<void, vmm::Error>(std::span<const vmm::StateSection>)> restore_more;
  // The right to run it is ours: `held` as it was at the source. Short: the guest waits for it.
  std::function<void(bool held)> let_go;
};

class Destination {
public:
  // `doorkeeper` outlives the object.
  Destination(Doorkeeper& doorkeeper, DestinationOptions options);
  ~Destination();
  Destination(const Destination&) = delete;
  Destination& operator=(const Destination&) = delete;

  // Waits for a source and for what it says of its machine. Who hangs up before, falls silent or describes none is
  // told so, and another is waited for where another can come. CONTEXT: once; blocks. RETURNS: Doorkeeper's errors;
  // what became of the one source there could be.
  [[nodiscard]] std::expected<vmm::VmConfig, vmm::Error> await_machine();
  // After await_machine(): the machine cannot be made here. The source is told why, and hung up on.
  void refuse(const vmm::Error& why) noexcept;
  // Everything else, into `vm`, which was made from the configuration: bare, held at its start, disks not locked.
  // CONTEXT: once, after await_machine(); blocks until the guest runs here or never will. RETURNS: why it never
  // will; the source has been told as far as it can be.
  [[nodiscard]] std::expected<void, vmm::Error> receive(vmm::Vm& vm, const DestinationSteps& steps);

  struct View {
    DestinationPhase phase = DestinationPhase::kWaiting;
    std::string source; // its name and address
    std::string vm;     // its name there
    std::string id;     // of the migration, hexadecimal
    uint64_t done_bytes = 0;
  };
  // CONTEXT, these: any thread.
  [[nodiscard]] View view() const;
  // An operator knows that the source has ended. RETURNS: kRefused where the guest is not orphaned.
  [[nodiscard]] std::expected<void, vmm::Error> start_here();

private:
  struct Event {
    uint64_t link = 0;
    Ear::Heard heard{};
    std::unique_ptr<Call> again{};
    bool start_here = false;
  };
  void take(std::unique_ptr<Call> control);
  [[nodiscard]] std::expected<vmm::VmConfig, vmm::Error> hear_machine();
  [[nodiscard]] std::expected<void, vmm::Error> load(vmm::Vm& vm, const DestinationSteps& steps,
                                                     std::optional<vmm::UrgentForAWhile>& urgent);
  [[nodiscard]] std::expected<void, vmm::Error> get_ready(vmm::Vm& vm, const DestinationSteps& steps,
                                                          const StateMessage& state);
  [[nodiscard]] std::expected<void, vmm::Error> await_decision(vmm::Vm& vm, const DestinationSteps& steps);
  void hear(Event event, vmm::Vm& vm, const DestinationSteps& steps);
  void hear_word(Word word, vmm::Vm& vm, const DestinationSteps& steps);
  void act(const Turn& turn, vmm::Vm& vm, const DestinationSteps& steps);
  void enter(DestinationPhase phase);
  void listen();
  void take_again(std::unique_ptr<Call> call);
  void start_as_told(vmm::Vm& vm, const DestinationSteps& steps);
  [[nodiscard]] bool answer(Event event);
  void answer_from_now_on();
  void answer_for_a_while();
  [[nodiscard]] vmm::Error error(std::string reason, vmm::Status status = vmm::Status::kFailed) const;

  Doorkeeper& doorkeeper_;
  const DestinationOptions options_;
  std::unique_ptr<Call> control_;
  std::vector<std::unique_ptr<Call>> streams_;
  MachineFacts facts_;
  vmm::Progress progress_;
  bool held_ = false; // at the source

  DestinationSide side_; // of the thread of receive(), then of the answering thread
  EventQueue<Event> events_;
  uint64_t generation_ = 0;
  std::unique_ptr<Ear> ear_;
  std::optional<vmm::Error> reason_;
  bool told_ = false;            // our last word was written to the link that is there
  bool needs_no_answer_ = false; // the source knows without us
  std::chrono::steady_clock::time_point keep_until_{};
  std::chrono::steady_clock::time_point cut_at_ = std::chrono::steady_clock::time_point::max();

  mutable std::mutex mutex_; // a leaf
  View view_;                // under mutex_

  std::jthread answering_; // who asks later; last
};

} // namespace stopvisor::migrate
