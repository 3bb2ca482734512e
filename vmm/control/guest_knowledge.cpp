// SPDX-License-Identifier: Apache-2.0
#include "vmm/control/guest_knowledge.h"

#include <sys/stat.h>

#include <span>
#include <utility>

#include "vmm/control/guest_access.h"
#include "vmm/urgent_thread.h"

namespace stopvisor::vmm {
namespace {

// A process' page tables may go away while we look by them; and a kernel may be found just before the guest's end.
constexpr int kTries = 2;

// What of a file changes when it is another one; empty where it cannot be seen.
std::string stamp_of(const std::string& path) {
  struct stat status{};
  if (path.empty() || ::stat(path.c_str(), &status) != 0)
    return {};
  std::string text;
  for (const int64_t number : {int64_t(status.st_dev), int64_t(status.st_ino), int64_t(status.st_size),
                               int64_t(status.st_mtim.tv_sec), int64_t(status.st_mtim.tv_nsec)})
    text += std::to_string(number) + " ";
  return text;
}

Error refused(const char* operation, const Vm& vm, std::string reason) {
  return {operation, vm.config().name, std::move(reason), Status::kRefused};
}

// A guest may make this long; it must not take a processor from the vCPUs meanwhile.
std::expected<LinuxKernel, std::string> find_kernel(const Vm& vm, std::span<const Registers> vcpus,
                                                    const SymbolFile* file) {
  const OrdinaryForAWhile ordinary;
  return LinuxKernel::find(vm.memory(), vcpus, file);
}

} // namespace

std::expected<std::vector<Registers>, Error> all_registers(const Vm& vm) {
  std::vector<Registers> all;
  const uint32_t present = vm.cpu_count();
  for (uint32_t cpu = 0; cpu < present; ++cpu) {
    auto one = vm.registers(cpu);
    if (!one)
      return std::unexpected(one.error());
    all.push_back(*one);
  }
  return all;
}

std::expected<void, Error> GuestKnowledge::with_kernel(const char* operation, const std::string& symbols,
                                                       Clock::time_point deadline, Use use) {
  if (vm_.config().kernel.empty())
    return std::unexpected(refused(operation, vm_, "the guest is the built-in probe guest, which is no Linux"));
  for (int i = 0; i < kTries; ++i) {
    auto found = find(operation, symbols, deadline);
    if (!found)
      return std::unexpected(found.error());
    bool is_there = false;
    auto used = under_stop(vm_, operation, deadline, [&]() -> std::expected<void, Error> {
      is_there = vm_.resets() == found->resets && found->kernel->is_in(vm_.memory());
      return is_there ? use(found->kernel) : std::expected<void, Error>();
    });
    if (!used || is_there)
      return used;
    forget(*found);
  }
  return std::unexpected(refused(operation, vm_, "the guest's kernel changed whenever it was looked for"));
}

std::expected<GuestKnowledge::Found, Error> GuestKnowledge::find(const char* operation, const std::string& symbols,
                                                                 Clock::time_point deadline) {
  const std::unique_lock search(searching_, deadline);
  if (!search)
    return std::unexpected(
        Error{operation, vm_.config().name, "others look for the guest's kernel", Status::kBusy});
  const std::string stamp = stamp_of(symbols);
  {
    const std::lock_guard guard(mutex_);
    if (found_ && found_->resets == vm_.resets() && found_->symbols == symbols && found_->stamp == stamp)
      return *found_;
  }
  std::optional<SymbolFile> file;
  if (!symbols.empty()) {
    const OrdinaryForAWhile ordinary;
    auto read = read_symbol_file(operation, symbols);
    if (!read)
      return std::unexpected(read.error());
    file = *std::move(read);
  }
  std::string reason;
  for (int i = 0; i < kTries; ++i) {
    std::expected<std::vector<Registers>, Error> vcpus;
    uint64_t resets = 0;
    auto taken = under_stop(vm_, operation, deadline, [&]() -> std::expected<void, Error> {
      resets = vm_.resets();
      vcpus = all_registers(vm_);
      return {};
    });
    if (!taken)
      return std::unexpected(taken.error());
    if (!vcpus)
      return std::unexpected(vcpus.error());
    auto kernel = find_kernel(vm_, *vcpus, file ? &*file : nullptr);
    if (kernel) {
      Found found{std::make_shared<const LinuxKernel>(*std::move(kernel)), resets, symbols, stamp};
      const std::lock_guard guard(mutex_);
      found_ = found;
      return found;
    }
    reason = std::move(kernel.error());
  }
  return std::unexpected(refused(operation, vm_, (file ? symbols + ": " : "no Linux kernel was found: ") + reason));
}

void GuestKnowledge::forget(const Found& found) {
  const std::lock_guard guard(mutex_);
  if (found_ && found_->kernel == found.kernel)
    found_.reset();
}

} // namespace stopvisor::vmm
