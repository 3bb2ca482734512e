// SPDX-License-Identifier: Apache-2.0
// A vCPU that cannot come, as a client of the control socket sees it: HTTP 503, status 4, and which vCPU it is.
#include <sys/socket.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "tests/kvm/kvm_fixture.h"
#include "tests/kvm/raw_guest.h"
#include "tests/kvm/snare.h"
#include "tools/client/client.h"
#include "vmm/control/api.h"
#include "vmm/control/server.h"
#include "vmm/control/socket_place.h"

namespace stopvisor::vmm::testing {
namespace {

using namespace std::chrono_literals;

class BlockedControl : public KvmTest {
protected:
  BlockedControl() {
    std::string pattern = "/tmp/svXXXXXX";
    runtime_ = ::mkdtemp(pattern.data());
    ::setenv("XDG_RUNTIME_DIR", runtime_.c_str(), 1); // NOLINT(concurrency-mt-unsafe): no other thread yet
  }
  ~BlockedControl() override { std::filesystem::remove_all(runtime_); }

  // vCPU 1 is caught on its way into the guest, and stays there.
  std::unique_ptr<Vm> with_vcpu_1_blocked() {
    auto vm = make(raw(kernel_.path(), 2));
    if (vm == nullptr)
      return nullptr;
    snare.arm(VcpuPoint::kAfterCheck, 1);
    vm->use_hooks(&snare);
    EXPECT_TRUE(vm->start().has_value());
    snare.caught.acquire();
    return vm;
  }

  Snare snare; // outlives each test's Vm

private:
  RawKernel kernel_{Code().spin()};
  std::string runtime_;
};

std::string raw_answer_to(const tools::Client& client, const std::string& request) {
  EXPECT_EQ(::send(client.fd(), request.data(), request.size(), 0), ssize_t(request.size()));
  std::array<char, 4096> bytes{};
  const ssize_t size = ::recv(client.fd(), bytes.data(), bytes.size(), 0);
  return {bytes.data(), size > 0 ? size_t(size) : 0};
}

TEST_F(BlockedControl, PauseFailsWithStatusFourAndNamesTheVcpu) {
  const auto vm = with_vcpu_1_blocked();
  ASSERT_NE(vm, nullptr);
  Api api(*vm);
  auto place = ControlPlace::claim("vm1");
  ASSERT_TRUE(place) << place.error().message();
  auto listening = place->listen();
  ASSERT_TRUE(listening) << listening.error().message();
  const auto server = ControlServer::start(std::move(*listening), api);
  ASSERT_TRUE(server);
  auto client = tools::Client::connect("pause", "vm1");
  ASSERT_TRUE(client) << client.error().message();

  const auto refused = client->pause(1s);
  ASSERT_FALSE(refused);
  EXPECT_EQ(int(refused.error().status), 4); // what the command ends with
  EXPECT_NE(refused.error().message().find("vCPU 1 (thread "), std::string::npos) << refused.error().message();
  EXPECT_EQ(refused.error().message().find("vCPU 0"), std::string::npos) << refused.error().message();
  const std::string answer =
      raw_answer_to(*client, "POST /v1/pause HTTP/1.1\r\nContent-Length: 19\r\n\r\n{\"timeout_ms\":1000}");
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 503 ")) << answer;
  EXPECT_EQ(vm->stops().holds(), 0U);

  snare.let_go.release();
  auto other = tools::Client::connect("pause", "vm1");
  ASSERT_TRUE(other);
  EXPECT_TRUE(other->pause(20s));
  EXPECT_TRUE(other->resume());
}

} // namespace
} // namespace stopvisor::vmm::testing
