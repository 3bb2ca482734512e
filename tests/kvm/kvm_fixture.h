// SPDX-License-Identifier: Apache-2.0
// What all tests on the real KVM share: skipped aloud where there is none, VMs made in a line.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "guest/probe_abi.h"
#include "vmm/kvm_system.h"
#include "vmm/vm.h"

namespace stopvisor::vmm::testing {

class KvmTest : public ::testing::Test {
protected:
  void SetUp() override {
    if (const auto system = KvmSystem::open(); !system)
      GTEST_SKIP() << "no usable KVM here: " << system.error().message();
  }

  // A VM that is not started yet; a failed expectation and null where it cannot be made.
  static std::unique_ptr<Vm> make(VmConfig config) {
    if (config.name.empty())
      config.name = "test";
    auto vm = Vm::create(std::move(config));
    EXPECT_TRUE(vm.has_value()) << vm.error().message();
    return vm ? std::move(*vm) : nullptr;
  }
  static std::unique_ptr<Vm> started(VmConfig config) {
    auto vm = make(std::move(config));
    if (vm == nullptr)
      return nullptr;
    auto on = vm->start();
    EXPECT_TRUE(on.has_value()) << on.error().message();
    return on ? std::move(vm) : nullptr;
  }
  static VmConfig probe(uint32_t cpus, std::string cmdline) {
    VmConfig config;
    config.cpus = cpus;
    config.memory_bytes = 64ULL << 20;
    config.cmdline = std::move(cmdline);
    return config;
  }
  static VmConfig raw(const std::string& kernel, uint32_t cpus = 1) {
    VmConfig config;
    config.cpus = cpus;
    config.memory_bytes = 4ULL << 20;
    config.kernel = kernel;
    return config;
  }

  // One value of guest memory, read live.
  template <class T>
  static T peek(const Vm& vm, uint64_t gpa) {
    T value{};
    EXPECT_TRUE(vm.memory().read(Gpa{gpa}, std::as_writable_bytes(std::span(&value, 1))));
    return value;
  }
  template <class T>
  static void poke(const Vm& vm, uint64_t gpa, T value) {
    EXPECT_TRUE(vm.memory().write(Gpa{gpa}, std::as_bytes(std::span(&value, 1))));
  }
  // Waits for the guest to do something of which nobody can tell us: it writes to its memory. Ends with a failed
  // expectation where the VM has ended, and with the test's own time limit where it never happens.
  template <class Condition>
  static bool await(const Vm& vm, Condition condition) {
    while (!condition()) {
      if (vm.state() == VmState::kEnded) {
        ADD_FAILURE() << "the VM ended";
        return false;
      }
      std::this_thread::yield();
    }
    return true;
  }
  static uint32_t cpus_running(const Vm& vm) {
    return peek<uint32_t>(vm, probe::kResultsGpa + offsetof(probe::Results, cpus_running));
  }
  static probe::CpuResults results(const Vm& vm, uint32_t cpu) {
    return peek<probe::CpuResults>(vm, probe::cpu_results_gpa(cpu));
  }
};

} // namespace stopvisor::vmm::testing
