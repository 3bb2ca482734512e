// SPDX-License-Identifier: Apache-2.0
#include "vmm/vm_making.h"

#include <chrono>
#include <exception>
#include <utility>

namespace stopvisor::vmm {

Vm::Parts::Making::Making(Parts& parts, std::vector<std::unique_ptr<virtio::Device>> its_devices)
    : devices(std::move(its_devices)), parts_(parts), vcpus_(parts.config.cpus) {}

Vm::Parts::Making::~Making() = default;

void Vm::Parts::Making::begin() {
  thread_ = std::async(std::launch::async | std::launch::deferred, [this] { return run(); });
}

std::expected<void, Error> Vm::Parts::Making::run() noexcept {
  const auto failed = [this](const char* reason) {
    return std::unexpected(Error{"start VM", parts_.config.name, reason});
  };
  std::expected<void, Error> done;
  try { // no memory, say: somebody waits for the latch
    done = open();
  } catch (const std::exception& failure) {
    done = failed(failure.what());
  }
  is_open_ = done.has_value();
  opened_.count_down();
  if (!done)
    return done;
  try {
    return set_up();
  } catch (const std::exception& failure) {
    return failed(failure.what());
  }
}

std::expected<void, Error> Vm::Parts::Making::open() {
  auto made = KvmVm::create(parts_.system, parts_.config.max_cpus, parts_.memory);
  if (!made)
    return std::unexpected(std::move(made.error()));
  parts_.kvm = *std::move(made);
  if (auto read = read_lists(); !read)
    return read;
  for (uint32_t cpu = 0; cpu < vcpus_.size(); ++cpu) { // KVM numbers them in this order
    auto vcpu = KvmVcpu::open(parts_.system, parts_.kvm, cpu);
    if (!vcpu)
      return std::unexpected(std::move(vcpu.error()));
    open_vcpus_.push_back(*std::move(vcpu));
  }
  return {};
}

std::expected<void, Error> Vm::Parts::Making::read_lists() {
  const std::lock_guard guard(lists_lock_);
  return parts_.system.read_lists();
}

bool Vm::Parts::Making::await_opened() {
  if (thread_.wait_for(std::chrono::seconds(0)) == std::future_status::deferred)
    thread_.wait(); // there was no thread: all of it is done now
  opened_.wait();
  return is_open_;
}

std::expected<void, Error> Vm::Parts::Making::set_up() {
  // Relaxed: each is taken once, and what it is about was there before.
  for (uint32_t cpu = 0; (cpu = next_.fetch_add(1, std::memory_order_relaxed)) < vcpus_.size();) {
    vcpus_[cpu] = parts_.make_vcpu(cpu, std::move(open_vcpus_[cpu]));
    if (!vcpus_[cpu]) {
      call_off();
      return std::unexpected(vcpus_[cpu].error());
    }
  }
  return {};
}

void Vm::Parts::Making::call_off() noexcept {
  next_.store(static_cast<uint32_t>(vcpus_.size()), std::memory_order_relaxed);
}

std::expected<std::vector<std::unique_ptr<Vcpu>>, Error> Vm::Parts::Making::await_end() {
  if (auto done = thread_.get(); !done)
    return std::unexpected(std::move(done.error()));
  std::vector<std::unique_ptr<Vcpu>> all;
  all.reserve(vcpus_.size());
  for (auto& vcpu : vcpus_)
    all.push_back(*std::move(vcpu));
  return all;
}

} // namespace stopvisor::vmm
