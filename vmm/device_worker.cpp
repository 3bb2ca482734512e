// SPDX-License-Identifier: Apache-2.0
// The loop, and why no wake-up is lost in it.
//
//   somebody else                                 the worker
//   -------------                                 ----------
//   Q  put a job, queue a work, or ending := 1    R  forget the wake-ups up to here
//   W  wake                                       L  look: work? ending? job?    yes: serve it, go back to R
//                                                 S  sleep until there was a wake-up after R
//
// Q comes before W, and R before L. Either W comes before R, and with it Q (W1): L sees what was left. Or W comes
// after R: then S does not fall asleep, or is woken. Were R after L, a Q and a W between them would be slept
// through. What R, W and S do depends on what the worker sleeps on. With a futex, W counts, R remembers the count,
// and S sleeps while it is that. With an eventfd, W raises it, R lowers it (where S has found it raised), and S
// sleeps until it is raised. KVM raises the eventfd of a virtio device as well, when the guest writes to its notify
// register: then Q is the guest's, which has put a chain into a queue.
//
// While it sleeps it is at rest, and stops pass it by: waking it to tell it that it need not do anything would cost
// each of them more than all vCPUs of a small machine. It rises before it looks for a job again, so that a stop
// that has caught it at rest is seen in L, and one that comes later waits for it. What wakes it while a stop is
// held (a packet for the guest; a notice that KVM passed on before the vCPUs were held) changes nothing: it rises,
// finds the stop's work in L, and waits at its gate; the job is found when it is let go.
//
// Works come before jobs in L, and there is one job in a turn: so a stop waits for one job at most, however many
// the guest has asked for.
#include "vmm/device_worker.h"

#include <pthread.h>

#include <system_error>
#include <utility>

namespace stopvisor::vmm {

DeviceWorker::DeviceWorker(std::string name, stopper::CpuId participant, WorkerDevice& device,
                           std::unique_ptr<WorkerSleep> sleep, Surroundings around)
    : name_(std::move(name)), participant_(participant), device_(device), sleep_(std::move(sleep)),
      around_(around) {}

DeviceWorker::~DeviceWorker() {
  join();
}

std::expected<void, Error> DeviceWorker::start() {
  try {
    thread_ = std::thread([this] { run(); });
  } catch (const std::system_error& error) {
    return std::unexpected(Error{"start VM", "worker " + name_, error.code().message(), Status::kFailed});
  }
  return {};
}

void DeviceWorker::await_start() const noexcept {
  runs_.wait(0, std::memory_order_acquire); // pairs with run(): from here on it has a number
}

// A machine that was saved may have jobs before it has run: they are not done before a hold that it is started
// with.
void DeviceWorker::open_gate() noexcept {
  open_.store(true, std::memory_order_release); // Q: pairs with loop()
  notify();
}

void DeviceWorker::join() {
  if (thread_.joinable())
    thread_.join();
}

void DeviceWorker::notify() noexcept {
  sleep_->wake(); // W
}

void DeviceWorker::kick() noexcept {
  priority_.note_urgent();
  notify();
  around_.hooks.at(VcpuPoint::kWorkerKicked, participant_);
}

void DeviceWorker::run() noexcept {
  ::pthread_setname_np(::pthread_self(), name_.c_str());
  around_.machine.bind_thread(participant_);
  priority_.adopt_this_thread();
  runs_.store(1, std::memory_order_release); // pairs with await_start()
  runs_.notify_all();

  loop();

  // Out for good: a stop that waits for us is served first, all others do without us.
  around_.machine.retire(participant_);
  priority_.leave();
  around_.machine.unbind_thread();
}

void DeviceWorker::loop() noexcept {
  for (;;) {
    sleep_->look();                                 // R
    if (around_.machine.should_run(participant_)) { // L
      around_.machine.note_out(participant_, 0);
      around_.machine.run_works(participant_);
      continue;
    }
    if (around_.life.ending())
      return;
    priority_.settle(); // a kick that it misses has woken us: once round, after one job at most
    const bool open = open_.load(std::memory_order_acquire); // pairs with open_gate()
    if (open && device_.do_job()) {
      jobs_done_.fetch_add(1, std::memory_order_relaxed); // a counter by itself
      continue;
    }
    const Watch also = open ? device_.watch() : Watch{};
    if (!around_.machine.rest(participant_))
      continue;
    around_.hooks.at(VcpuPoint::kBeforeSleep, participant_);
    sleep_->sleep(also); // S
    around_.machine.rise(participant_);
  }
}

} // namespace stopvisor::vmm
