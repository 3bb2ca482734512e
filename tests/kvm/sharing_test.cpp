// SPDX-License-Identifier: Apache-2.0
// Clients that come together share stops: 64 need far fewer than 64, and each gets its own answer.
#include <array>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "tests/kvm/kvm_fixture.h"
#include "tests/kvm/raw_guest.h"
#include "tests/kvm/snare.h"
#include "tools/client/client.h"
#include "vmm/control/api.h"
#include "vmm/control/server.h"
#include "vmm/control/socket_place.h"

namespace stopvisor::vmm::testing {
namespace {

constexpr uint32_t kClients = 64;
constexpr uint64_t spot_of(uint64_t client) {
  return 0x20'0000 + 8 * client;
}

class Sharing : public KvmTest {
protected:
  Sharing() {
    std::string pattern = "/tmp/svXXXXXX";
    runtime_ = ::mkdtemp(pattern.data());
    ::setenv("XDG_RUNTIME_DIR", runtime_.c_str(), 1); // NOLINT(concurrency-mt-unsafe): no other thread yet
  }
  ~Sharing() override { std::filesystem::remove_all(runtime_); }

  // vCPU 1 is caught on its way into the guest: the first client's stop stays in the making.
  std::unique_ptr<Vm> with_vcpu_1_blocked() {
    auto vm = make(raw(kernel_.path(), 2));
    if (vm == nullptr)
      return nullptr;
    snare_.arm(VcpuPoint::kAfterCheck, 1);
    vm->use_hooks(&snare_);
    EXPECT_TRUE(vm->start().has_value());
    snare_.caught.acquire();
    return vm;
  }
  // Has each of 64 clients do `poke` at the same time: nobody is served before all have come.
  template <class Poke>
  void all_at_once(Vm& vm, Poke poke) {
    std::vector<std::thread> clients;
    clients.reserve(kClients);
    for (uint32_t client = 0; client < kClients; ++client)
      clients.emplace_back([&poke, client] { poke(client); });
    EXPECT_TRUE(await(vm, [&] { return vm.stops().waiting() == kClients; }));
    snare_.let_go.release();
    for (std::thread& client : clients)
      client.join();
    for (uint32_t client = 0; client < kClients; ++client)
      EXPECT_EQ(peek<uint64_t>(vm, spot_of(client)), 1000U + client);
  }

  Snare snare_; // outlives each test's Vm

private:
  RawKernel kernel_{Code().spin()};
  std::string runtime_;
};

TEST_F(Sharing, By64ThreadsTakesOneStopWhereTheBudgetLasts) {
  const auto vm = with_vcpu_1_blocked();
  ASSERT_NE(vm, nullptr);
  std::array<stopper::RunOutcome, kClients> outcomes;
  all_at_once(*vm, [&](uint32_t client) {
    const auto outcome = vm->stops().run(
        [&](stopper::StopContext&) {
          poke<uint64_t>(*vm, spot_of(client), 1000U + client);
          return static_cast<int>(client) + 1;
        },
        {.budget = std::chrono::hours(1)});
    ASSERT_TRUE(outcome.has_value()) << vm->explain("stop", outcome.error()).message();
    outcomes[client] = *outcome;
  });
  for (uint32_t client = 0; client < kClients; ++client) {
    EXPECT_EQ(outcomes[client].result, static_cast<int>(client) + 1);
    EXPECT_EQ(outcomes[client].sequence, 1U);
  }
  const auto report = vm->stop_machine().last_report();
  EXPECT_EQ(report.sequence, 1U);
  EXPECT_EQ(report.shared, kClients);
}

// A budget that is spent at once: each leader runs its own callback, lets the guest go, and passes the lead on.
TEST_F(Sharing, EndsWhereTheBudgetDoes) {
  const auto vm = with_vcpu_1_blocked();
  ASSERT_NE(vm, nullptr);
  all_at_once(*vm, [&](uint32_t client) {
    const auto outcome = vm->stops().run(
        [&](stopper::StopContext&) {
          poke<uint64_t>(*vm, spot_of(client), 1000U + client);
          return 0;
        },
        {.budget = stopper::Nanoseconds{0}});
    EXPECT_TRUE(outcome.has_value());
  });
  const auto report = vm->stop_machine().last_report();
  EXPECT_EQ(report.sequence, kClients);
  EXPECT_EQ(report.shared, 1U);
}

TEST_F(Sharing, By64ClientsOfTheSocketTakesFarFewerThan64Stops) {
  const auto vm = with_vcpu_1_blocked();
  ASSERT_NE(vm, nullptr);
  Api api(*vm);
  auto place = ControlPlace::claim("vm1");
  ASSERT_TRUE(place) << place.error().message();
  auto listening = place->listen();
  ASSERT_TRUE(listening) << listening.error().message();
  const auto server = ControlServer::start(std::move(*listening), api);
  ASSERT_TRUE(server);
  std::vector<tools::Client> connections;
  for (uint32_t client = 0; client < kClients; ++client) {
    auto connection = tools::Client::connect("poke", "vm1");
    ASSERT_TRUE(connection) << connection.error().message();
    connections.push_back(std::move(*connection));
  }
  std::array<std::string, kClients> answers;
  all_at_once(*vm, [&](uint32_t client) {
    char body[192];
    std::snprintf(
        body, sizeof body,
        R"({"writes":[{"address":"gpa:0x%x","bytes":"%02x%02x000000000000","expect":"0000000000000000"}],)"
        R"("timeout_ms":60000})",
        static_cast<unsigned>(spot_of(client)), (1000 + client) & 0xff, (1000 + client) >> 8);
    auto answer = connections[client].request("POST", "/v1/poke", body);
    ASSERT_TRUE(answer) << answer.error().message();
    answers[client] = *answer;
  });
  for (const std::string& answer : answers)
    EXPECT_NE(answer.find("\"bytes\":8"), std::string::npos) << answer;
  const auto report = vm->stop_machine().last_report();
  EXPECT_LE(report.sequence, kClients / 4);
  auto told = connections[0].request("GET", "/v1/stop-report");
  ASSERT_TRUE(told) << told.error().message();
  EXPECT_NE(told->find("\"shared\":" + std::to_string(report.shared) + ","), std::string::npos) << *told;
}

} // namespace
} // namespace stopvisor::vmm::testing
