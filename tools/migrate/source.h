// SPDX-License-Identifier: Apache-2.0
// The source's side of a migration: from the first call to the moment when it is known who runs the guest.
//
//   connecting ──▶ copying ──▶ switching ──▶ gone
//        │            │            │   └──▶ in doubt ──▶ gone, or here again
//        └────────────┴────────────┴─────▶ here again, with an error
//
// While it copies the guest runs, and what it writes is sent once more (docs/adr/0026-pre-copy.md). The switch is
// one callback under a stop, in which everything from the last pages to the destination's word happens: nobody can
// change the guest in between (docs/adr/0024-hand-over.md).
#pragma once

#include <chrono>
#include <cstdint>
#include <expected>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "tools/migrate/address.h"
#include "tools/migrate/messages.h"
#include "tools/migrate/throttle.h"
#include "vmm/control/holds.h"
#include "vmm/error.h"
#include "vmm/progress.h"
#include "vmm/state/section.h"
#include "vmm/vm.h"

namespace stopvisor::migrate {

class Convergence;
class PageSender;

struct SourceOptions {
  std::string operation = "migrate";
  Address to;
  bool insecure = false;
  std::chrono::nanoseconds max_downtime = std::chrono::milliseconds(50);
  uint64_t bytes_per_second = 0; // 0: as fast as it goes
  uint16_t streams = 1;
  bool compress = false;
  std::optional<std::chrono::nanoseconds> timeout; // until the switch begins; none: as long as it takes
};

// What others have to do with it. CONTEXT: the thread of run().
struct SourceSurroundings {
  vmm::Holds& holds;
  vmm::Progress* progress = nullptr;
  std::stop_token stop;
  std::function<void(const char*)> begin_phase;
  std::function<void(const std::string&)> tell; // for the log
  // What else is to go along. CONTEXT: under the stop.
  std::function<void(std::vector<vmm::StateSection>&)> add_state;
};

struct RoundTold {
  uint32_t number = 0;
  uint64_t pages = 0; // dirty at its begin
  std::chrono::nanoseconds took{0};
  double slowed = 0; // the fraction of time the guest was held
};

struct SourceFigures {
  std::chrono::nanoseconds total{0};
  std::chrono::nanoseconds downtime{0};    // from the guest held until the destination's word that it runs
  std::chrono::nanoseconds until_ready{0}; // of it, until the destination had everything
  std::vector<RoundTold> rounds;           // the last 64; the one under the stop is the last
  uint64_t rounds_made = 0;
  uint64_t payload_bytes = 0; // of pages
  uint64_t pages_looked_at = 0;
  uint64_t pages_sent = 0; // whole
  uint64_t pages_zero = 0;
  uint64_t pages_copies = 0;
  uint64_t pages_unchanged = 0;
  uint64_t throttle_stops = 0;
  std::chrono::nanoseconds throttled_for{0};
  double pages_per_second = 0; // of the link, destination included
  double dirty_per_second = 0; // of the guest
};

enum class SourcePhase : uint8_t { kConnecting, kCopying, kSwitching, kDoubt, kGone, kHere };
[[nodiscard]] const char* name_of(SourcePhase phase) noexcept;

// What an operator says to a source in doubt.
enum class OperatorWord : uint8_t {
  kRunHere, // the destination has ended, and will not run the guest
  kDrop,    // the destination runs it
  kAsk,     // dial again, and have it run there if it does not yet
  kTakeBack // dial again, and have it not run there unless it does already
};

class Source {
public:
  // `vm` and what `around` refers to outlive the object.
  Source(vmm::Vm& vm, SourceOptions options, SourceSurroundings around);
  ~Source();
  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;

  // All of it. CONTEXT: once; a thread that no stop waits for; blocks for as long as it takes, in doubt until that
  // is over or the VM ends. RETURNS: what it took, where the guest is gone: the VM has been ended then (kMigrated).
  // Otherwise why not; the guest goes on here as before, unless the VM itself has ended.
  [[nodiscard]] std::expected<SourceFigures, vmm::Error> run();

  struct View {
    SourcePhase phase = SourcePhase::kConnecting;
    std::string doubt; // why, in words
    std::string id;    // of the migration, hexadecimal
    SourceFigures figures;
  };
  // CONTEXT: any thread.
  [[nodiscard]] View view() const;
  // RETURNS: kRefused where nothing is in doubt. CONTEXT: any thread; what comes of it is seen in view().
  // `other`: of kAsk and kTakeBack, where the destination is to be found now.
  [[nodiscard]] std::expected<void, vmm::Error> tell(OperatorWord word, std::optional<Address> other = {});

private:
  class Connection;
  class Switch;
  class Limit;
  struct Shared;
  [[nodiscard]] std::expected<void, vmm::Error> connect(Connection& connection, const std::stop_token& stop);
  [[nodiscard]] std::expected<MachineFacts, vmm::Error> facts();
  [[nodiscard]] std::expected<void, vmm::Error> copy(Connection& connection, Limit& limit);
  [[nodiscard]] std::expected<void, vmm::Error> hand_over(Connection& connection);
  [[nodiscard]] std::expected<void, vmm::Error> check_goes_on() const;
  [[nodiscard]] vmm::Error error(std::string reason, vmm::Status status = vmm::Status::kFailed) const;
  void enter(SourcePhase phase, const char* words);
  void note_round(const RoundTold& round, const Convergence& model, const Throttle::Figures& throttle,
                  const PageSender& sender);

  vmm::Vm& vm_;
  const SourceOptions options_;
  const SourceSurroundings around_;
  MigrationId id_{};
  std::chrono::steady_clock::time_point begin_;
  std::unique_ptr<Shared> shared_;
};

} // namespace stopvisor::migrate
