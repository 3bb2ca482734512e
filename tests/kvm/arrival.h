// SPDX-License-Identifier: Apache-2.0
// Where a guest of a test arrives, as `run --incoming` has it (tools/stopvisor/incoming_process.cpp).
#pragma once

#include <expected>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>

#include <gtest/gtest.h>

#include "tools/migrate/destination.h"
#include "tools/migrate/doorkeeper.h"
#include "vmm/control/api.h"
#include "vmm/vm.h"

namespace stopvisor::vmm::testing {

// A VM and the book of who holds it.
struct Guest {
  std::unique_ptr<Vm> vm;
  std::unique_ptr<Api> api; // goes first
  [[nodiscard]] Holds& holds() const { return api->context().holds; }
};

// Waits for a guest and takes it in, on a thread of its own.
class Arrival {
public:
  // `look` is called when the right to run the guest has come, before its first instruction here.
  Arrival(const std::string& uri, std::function<void(Vm&)> look) : look_(std::move(look)) {
    const auto address = migrate::parse_address("incoming", uri, migrate::Side::kDestination);
    auto listener = migrate::Listener::open("incoming", address.value(), false);
    listener_ = *std::move(listener);
    doorkeeper_.emplace("incoming", *listener_, [](const Error&) {});
    destination_.emplace(*doorkeeper_, migrate::DestinationOptions{.operation = "incoming",
                                                                   .stop = stop_.get_token(),
                                                                   .tell = [](const std::string&) {}});
    thread_ = std::jthread([this] { result_ = receive(); });
  }
  ~Arrival() { cancel(); }
  Arrival(const Arrival&) = delete;
  Arrival& operator=(const Arrival&) = delete;

  void cancel() noexcept { stop_.request_stop(); }
  [[nodiscard]] migrate::Destination& destination() noexcept { return *destination_; }
  // How it came out. CONTEXT: once; blocks until it is known.
  [[nodiscard]] const std::expected<void, Error>& wait() {
    if (thread_.joinable())
      thread_.join();
    return result_;
  }
  // CONTEXT: after wait().
  [[nodiscard]] Guest take() noexcept { return std::move(guest_); }
  [[nodiscard]] bool was_held() const noexcept { return held_; }

private:
  std::expected<void, Error> receive() {
    auto config = destination_->await_machine();
    if (!config)
      return std::unexpected(config.error());
    config->name = destination_->view().vm;
    auto vm = Vm::create(*std::move(config));
    if (!vm) {
      destination_->refuse(vm.error());
      return std::unexpected(vm.error());
    }
    guest_.vm = *std::move(vm);
    guest_.api = std::make_unique<Api>(*guest_.vm); // it books the pause that the VM is started with
    return destination_->receive(*guest_.vm, {.restore_more = {}, .let_go = [this](bool held) { let_go(held); }});
  }
  void let_go(bool held) {
    look_(*guest_.vm);
    held_ = held;
    if (!held) {
      EXPECT_TRUE(guest_.holds().resume().has_value());
    }
  }

  const std::function<void(Vm&)> look_;
  std::stop_source stop_;
  std::unique_ptr<migrate::Listener> listener_;
  std::optional<migrate::Doorkeeper> doorkeeper_;
  Guest guest_; // it was the destination's, so it goes after it
  std::optional<migrate::Destination> destination_;
  std::expected<void, Error> result_;
  bool held_ = false;
  std::jthread thread_; // last
};

} // namespace stopvisor::vmm::testing
