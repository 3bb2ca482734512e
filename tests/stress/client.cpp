// SPDX-License-Identifier: Apache-2.0
#include "tests/stress/client.h"

#include <algorithm>
#include <optional>
#include <stdexcept>

namespace stopvisor::stress {

using stopper::CpuMask;
using stopper::StopContext;
using stopper::StopErrc;
using stopper::StopError;
using Ending = Journal::Ending;

namespace {

constexpr uint32_t kWorkers = 1; // the doorbell's; numbered after the vCPUs

// An error that is right under a condition; else one that never comes.
constexpr std::optional<StopErrc> where(bool condition, StopErrc code) noexcept {
  return condition ? std::optional(code) : std::nullopt;
}

} // namespace

// Owned by the call it is made for; the stopper must not call it once that has returned.
struct Client::Callback {
  Callback(Client& its_client, Operation its_operation, Mood its_mood, bool alone)
      : client(its_client), operation(its_operation), mood(its_mood), has_all(alone) {}

  int operator()(StopContext& context) {
    calls.fetch_add(1, std::memory_order_relaxed); // read after the call has returned
    if (has_all) {
      const Target::Alone alone(client.target_);
      work();
    }
    if (mood == Mood::kThrows)
      throw std::runtime_error("as it should");
    if (mood == Mood::kCallsBack)
      call_back(context);
    return mood == Mood::kFails ? kFailure : 0;
  }

  void work() const {
    Target& target = client.target_;
    switch (operation) {
    case Operation::kUpdateLedger:
      return target.update_ledger();
    case Operation::kUpdateCode:
      return target.update_code();
    case Operation::kReset:
      return target.plant_reset();
    default:
      return target.inspect();
    }
  }

  // Whoever is inside a callback gets an error, and no hang.
  void call_back(StopContext&) const {
    const auto nothing = [](StopContext&) { return 0; };
    const auto refused = [&](const auto& answer) {
      if (answer || (answer.error().code != StopErrc::kWouldDeadlock && answer.error().code != StopErrc::kEnded))
        client.target_.journal().fail("a stop from inside a callback was not refused as a deadlock");
    };
    refused(client.service_.run(nothing));
    refused(client.machine_.stop_machine(nothing));
    refused(client.machine_.stop_one_cpu(0, nothing));
    refused(client.machine_.hold());
  }

  Client& client;
  const Operation operation;
  const Mood mood;
  const bool has_all; // everybody is held, and it is the only call of its kind
  std::atomic<uint32_t> calls{0};
};

Client::Client(Target& target, uint64_t seed, uint32_t number)
    : target_(target), machine_(target.vm().stop_machine()), service_(target.vm().stops()), random_(seed),
      number_(number) {}

void Client::run(uint32_t operations) {
  Journal& journal = target_.journal();
  for (uint32_t n = 0; n < operations && !target_.has_ended() && !journal.failed(); ++n) {
    const Operation operation = pick();
    journal.doing(number_, kOperationNames[static_cast<uint32_t>(operation)]);
    perform(operation);
  }
  journal.doing(number_, "waiting for its works");
  await_works();
  journal.doing(number_, nullptr);
}

Operation Client::pick() {
  // Each as often as its name stands here.
  constexpr std::array kOften{
      Operation::kUpdateLedger, Operation::kUpdateLedger, Operation::kUpdateLedger, Operation::kUpdateCode,
      Operation::kUpdateCode,   Operation::kUpdateCode,   Operation::kInspect,      Operation::kHold,
      Operation::kHold,         Operation::kStopOne,      Operation::kStopOne,      Operation::kStopOneNoWait,
      Operation::kStopTwo,      Operation::kStopTwo,      Operation::kStopCpus,     Operation::kTryStopCpus,
      Operation::kStopMachine,  Operation::kStopMachine,  Operation::kPartialHold,
  };
  if (random_.one_in(250))
    return Operation::kReset;
  if (target_.hotplug() && random_.one_in(25))
    return Operation::kHotplug;
  return kOften[random_.below(kOften.size())];
}

void Client::perform(Operation operation) {
  switch (operation) {
  case Operation::kUpdateLedger:
  case Operation::kUpdateCode:
  case Operation::kInspect:
  case Operation::kReset:
    return run_under_stop(operation);
  case Operation::kHold:
    return hold();
  case Operation::kStopOne:
    return stop_one();
  case Operation::kStopOneNoWait:
    return stop_one_no_wait();
  case Operation::kStopTwo:
    return stop_two();
  case Operation::kStopCpus:
    return stop_cpus(false);
  case Operation::kTryStopCpus:
    return stop_cpus(true);
  case Operation::kStopMachine:
    return stop_machine();
  case Operation::kPartialHold:
    return partial_hold();
  case Operation::kHotplug:
    return hotplug();
  }
}

Client::Asked Client::ask(Operation operation, uint32_t least, uint32_t most) {
  Asked asked{operation, Mood::kFine, {}, least, most};
  if (random_.one_in(4))
    asked.mood = std::array{Mood::kFails, Mood::kThrows, Mood::kCallsBack}[random_.below(3)];
  if (random_.one_in(6)) // from "passed already" to "just about possible"
    asked.options.deadline = stopper::Clock::now() + std::chrono::microseconds(random_.below(600));
  asked.options.budget = std::chrono::microseconds(std::array{0, 50, 1000}[random_.below(3)]);
  return asked;
}

// Now and then one that does not exist, or the doorbell's worker where any participant will do.
uint32_t Client::some_cpu() {
  return random_.below(machine_.possible_cpus() + (random_.one_in(8) ? 2 : 0));
}

CpuMask Client::some_cpus() {
  CpuMask mask;
  const uint32_t count = random_.below(machine_.possible_cpus()) + (random_.one_in(16) ? 0 : 1);
  for (uint32_t n = 0; n < count; ++n)
    mask.set(some_cpu());
  return mask;
}

CpuMask Client::always_of(const CpuMask& mask) const {
  return mask & CpuMask::first_n(target_.hotplug() ? 1 : machine_.possible_cpus());
}

CpuMask Client::ever_of(const CpuMask& mask) const {
  return mask & CpuMask::first_n(machine_.possible_cpus());
}

void Client::fail(const Asked& asked, const std::string& what) {
  target_.journal().fail("client " + std::to_string(number_) + ", " +
                         kOperationNames[static_cast<uint32_t>(asked.operation)] + ", mood " +
                         std::to_string(static_cast<int>(asked.mood)) + ": " + what);
}

bool Client::judge(const Asked& asked, const Callback& callback, const StopError* error, int result,
                   std::initializer_list<std::optional<StopErrc>> allowed) {
  Journal& journal = target_.journal();
  const uint32_t calls = callback.calls.load(std::memory_order_relaxed); // the call has returned
  const bool throws = asked.mood == Mood::kThrows && asked.most != 0;
  const bool made = error == nullptr || (error->code == StopErrc::kCallbackThrew && throws);
  if (made) {
    journal.count(asked.operation, Ending::kDone);
    // A VM that ends takes its vCPUs offline: their share is completed at once.
    const uint32_t least = target_.has_ended() ? 0 : asked.least;
    if (calls < least || calls > asked.most)
      fail(asked, "the callback ran " + std::to_string(calls) + " times");
    if (throws && error == nullptr && calls != 0)
      fail(asked, "the callback threw, and nobody said so");
    if (error == nullptr && calls != 0 && result != (asked.mood == Mood::kFails ? kFailure : 0))
      fail(asked, "the result is " + std::to_string(result));
    return error == nullptr;
  }
  const bool late = error->code == StopErrc::kDeadline && asked.options.deadline != stopper::kForever;
  const bool ended =
      (error->code == StopErrc::kEnded || error->code == StopErrc::kNoSuchCpu) && target_.has_ended();
  journal.count(asked.operation, late ? Ending::kTooLate : Ending::kRefused);
  if (!late && !ended && std::ranges::find(allowed, std::optional(error->code)) == allowed.end())
    fail(asked, std::string("refused: ") + stopper::to_string(error->code));
  const bool one_by_one = asked.operation == Operation::kStopCpus || asked.operation == Operation::kTryStopCpus;
  if (calls != 0 && !one_by_one)
    fail(asked, std::string("the callback ran, and yet: ") + stopper::to_string(error->code));
  return false;
}

void Client::run_under_stop(Operation operation) {
  const Asked asked = ask(operation, 1, 1);
  Callback callback(*this, operation, asked.mood, true);
  if (target_.tears() && operation == Operation::kUpdateLedger) {
    target_.update_ledger();
    return;
  }
  const auto answer = service_.run(callback, asked.options);
  judge(asked, callback, answer ? nullptr : &answer.error(), answer ? answer->result : 0);
}

void Client::hold() {
  Asked asked = ask(Operation::kHold, 0, 0);
  const Callback none(*this, Operation::kHold, asked.mood, false);
  const auto hold = service_.acquire_hold(asked.options);
  if (!judge(asked, none, hold ? nullptr : &hold.error(), 0))
    return;
  for (uint32_t more = random_.below(3); more > 0; --more) {
    Asked inner = ask(Operation::kInspect, 1, 1);
    Callback callback(*this, random_.one_in(2) ? Operation::kUpdateLedger : Operation::kInspect, inner.mood, true);
    const auto answer = service_.run(callback, inner.options);
    judge(inner, callback, answer ? nullptr : &answer.error(), answer ? answer->result : 0);
  }
  if (!target_.has_ended() && service_.holds() != 0)
    target_.expect_at_rest(machine_.online(), "a hold");
  if (!service_.release_hold() && !target_.has_ended())
    fail(asked, "the hold was gone when it was given back");
}

void Client::stop_one() {
  const uint32_t cpu = some_cpu();
  const Asked asked = ask(Operation::kStopOne, 1, 1);
  Callback callback(*this, Operation::kStopOne, asked.mood, false);
  const auto answer = machine_.stop_one_cpu(cpu, callback, asked.options);
  if (answer && cpu >= machine_.possible_cpus() + kWorkers)
    fail(asked, "a participant that does not exist was stopped");
  judge(asked, callback, answer ? nullptr : &answer.error(), answer.value_or(0),
        {where(always_of(CpuMask::of(cpu)).empty(), StopErrc::kNoSuchCpu)});
}

stopper::Invocation Client::count_call(void* calls, stopper::CpuId) noexcept {
  static_cast<std::atomic<uint64_t>*>(calls)->fetch_add(1,
                                                        std::memory_order_acq_rel); // S3, pairs with await_works()
  return {0, false};
}

void Client::stop_one_no_wait() {
  const uint32_t cpu = some_cpu();
  SmallWork& small = works_[random_.below(kWorks)];
  const Asked asked = ask(Operation::kStopOneNoWait, 0, 0);
  const auto answer = machine_.stop_one_cpu_nowait(cpu, &count_call, &small.calls, small.work);
  if (answer) {
    ++small.queued;
    target_.journal().count(asked.operation, Ending::kDone);
    return;
  }
  target_.journal().count(asked.operation, Ending::kRefused);
  const StopErrc code = answer.error().code;
  const bool right = target_.has_ended() || code == StopErrc::kWorkInUse ||
                     (code == StopErrc::kNoSuchCpu && always_of(CpuMask::of(cpu)).empty());
  if (!right)
    fail(asked, std::string("refused: ") + stopper::to_string(code));
}

// Works are executed in order, so a stop of each vCPU comes after them; of one that is gone, they are executed too.
void Client::await_works() {
  const auto nothing = [](StopContext&) { return 0; };
  for (uint32_t cpu = 0; cpu < machine_.possible_cpus() + kWorkers; ++cpu) [[maybe_unused]]
    const auto after = machine_.stop_one_cpu(cpu, nothing);
  for (SmallWork& small : works_) {
    const uint64_t calls = small.calls.load(std::memory_order_acquire); // S3
    if (!target_.has_ended() && calls != small.queued)
      target_.journal().fail("of " + std::to_string(small.queued) + " works " + std::to_string(calls) +
                             " were executed");
  }
}

void Client::stop_two() {
  const uint32_t one = some_cpu();
  const uint32_t other = some_cpu();
  const Asked asked = ask(Operation::kStopTwo, 1, 1);
  Callback callback(*this, Operation::kStopTwo, asked.mood, false);
  const auto answer = machine_.stop_two_cpus(one, other, callback, asked.options);
  CpuMask both = CpuMask::of(one);
  both.set(other);
  const bool exist = ever_of(both).count() == both.count();
  const bool stay = always_of(both).count() == both.count();
  if (answer && (!exist || one == other))
    fail(asked, "a stop of one, or of none, took place");
  judge(asked, callback, answer ? nullptr : &answer.error(), answer.value_or(0),
        {where(one == other, StopErrc::kSameCpu), where(!stay, StopErrc::kNoSuchCpu)});
}

void Client::judge_outcome(const Asked& asked, const Callback& callback,
                           const std::expected<stopper::StopOutcome, StopError>& outcome,
                           std::initializer_list<std::optional<StopErrc>> allowed) {
  if (!judge(asked, callback, outcome ? nullptr : &outcome.error(), outcome ? outcome->result : 0, allowed))
    return;
  const size_t failures = asked.mood == Mood::kFails ? callback.calls.load(std::memory_order_relaxed) : 0;
  if (outcome->nonzero.size() != failures)
    fail(asked,
         std::to_string(outcome->nonzero.size()) + " of " + std::to_string(failures) + " failures are listed");
}

void Client::stop_cpus(bool only_try) {
  const CpuMask cpus = some_cpus();
  const uint32_t least = always_of(cpus).count();
  const uint32_t most = ever_of(cpus).count();
  const Asked asked = ask(only_try ? Operation::kTryStopCpus : Operation::kStopCpus, least, most);
  Callback callback(*this, asked.operation, asked.mood, false);
  const auto outcome = only_try ? machine_.try_stop_cpus(cpus, callback, asked.options)
                                : machine_.stop_cpus(cpus, callback, asked.options);
  if (outcome && most == 0)
    fail(asked, "a stop of nobody took place");
  judge_outcome(asked, callback, outcome,
                {where(only_try, StopErrc::kBusy), where(least == 0, StopErrc::kNoSuchCpu),
                 where(cpus.empty(), StopErrc::kEmptyMask)});
}

void Client::stop_machine() {
  const CpuMask active = ever_of(some_cpus());
  const bool first = active.empty() || random_.one_in(2);
  const uint32_t least = first ? 1 : always_of(active).count();
  const uint32_t most = first ? 1 : active.count();
  const Asked asked = ask(Operation::kStopMachine, least, most);
  const Operation work = random_.one_in(2) ? Operation::kUpdateCode : Operation::kInspect;
  Callback callback(*this, work, asked.mood, most == 1);
  const auto outcome = machine_.stop_machine(callback, first ? nullptr : &active, asked.options);
  judge_outcome(asked, callback, outcome, {where(least == 0, StopErrc::kNoSuchCpu)});
}

void Client::partial_hold() {
  const CpuMask cpus = some_cpus();
  const Asked asked = ask(Operation::kPartialHold, 0, 0);
  const Callback none(*this, Operation::kPartialHold, asked.mood, false);
  const auto stop = machine_.hold(asked.options, &cpus);
  if (!judge(asked, none, stop ? nullptr : &stop.error(), 0,
             {where(cpus.empty(), StopErrc::kEmptyMask), where(always_of(cpus).empty(), StopErrc::kNoSuchCpu)}))
    return;
  target_.expect_at_rest(ever_of(cpus), "a partial stop");
  if (random_.one_in(4)) { // and who holds one stop may not ask for another
    const auto second = machine_.stop_one_cpu(0, [](StopContext&) { return 0; });
    if (second || (second.error().code != StopErrc::kWouldDeadlock && second.error().code != StopErrc::kEnded))
      fail(asked, "a stop under a stop was not refused as a deadlock");
  }
}

// A vCPU is added, taken away, or brought back; what it is at that moment is for the VM to know.
void Client::hotplug() {
  const bool patient = !random_.one_in(4);
  const auto deadline =
      std::chrono::steady_clock::now() + (patient ? std::chrono::microseconds(std::chrono::minutes(2))
                                                  : std::chrono::microseconds(random_.below(20'000)));
  const uint32_t way = random_.below(5);
  const uint32_t cpu = random_.below(machine_.possible_cpus());
  vmm::Vm& vm = target_.vm();
  std::expected<void, vmm::Error> done;
  if (way == 0) {
    if (const auto added = vm.add_cpu(deadline); !added)
      done = std::unexpected(added.error());
  } else if (way < 3) {
    if (const auto gone = vm.offline_cpu(cpu, deadline, false); !gone)
      done = std::unexpected(gone.error());
  } else {
    done = vm.online_cpu(cpu, deadline);
  }
  target_.journal().count(Operation::kHotplug, done                                        ? Ending::kDone
                                               : done.error().status == vmm::Status::kBusy ? Ending::kTooLate
                                                                                           : Ending::kRefused);
  if (done || target_.has_ended())
    return;
  const vmm::Status status = done.error().status;
  // No such vCPU yet, or it is where it should go already; or there was no time.
  if (status != vmm::Status::kUsage && status != vmm::Status::kRefused && (patient || status != vmm::Status::kBusy))
    target_.journal().fail("client " + std::to_string(number_) + ": " + done.error().message());
}

} // namespace stopvisor::stress
