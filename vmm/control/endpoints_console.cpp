// SPDX-License-Identifier: Apache-2.0
// The serial port: what it sent, or a connection to it.
#include "vmm/control/endpoints.h"
#include "vmm/control/fields.h"
#include "vmm/urgent_thread.h"

namespace stopvisor::vmm {
namespace {

constexpr const char* kOperation = "console";
constexpr std::string_view kProtocol = "stopvisor-console"; // the port's bytes, both ways, and nothing around them
constexpr uint32_t kMaxConsoles = 16;

// One of the places for attached clients, given back with the object.
class ConsoleSeat {
public:
  explicit ConsoleSeat(std::atomic<uint32_t>& taken) : taken_(taken) {
    has_ = taken_.fetch_add(1, std::memory_order_relaxed) < kMaxConsoles; // a number by itself
  }
  ~ConsoleSeat() { taken_.fetch_sub(1, std::memory_order_relaxed); } // as above
  ConsoleSeat(const ConsoleSeat&) = delete;
  ConsoleSeat& operator=(const ConsoleSeat&) = delete;
  [[nodiscard]] bool has() const noexcept { return has_; }

private:
  std::atomic<uint32_t>& taken_;
  bool has_ = false;
};

} // namespace

ApiReply serve_console(ApiContext& context, const ApiRequest& request) {
  if (auto fine = Fields::of_query(kOperation, request).finish(); !fine)
    return error_reply(fine.error());
  ApiReply reply;
  if (request.upgrade.empty()) {
    const std::vector<std::byte> log = context.vm.console_log();
    reply.content_type = "application/octet-stream";
    reply.body.assign(reinterpret_cast<const char*>(log.data()), log.size());
    return reply;
  }
  if (request.upgrade != kProtocol)
    return error_reply(
        {kOperation, "", "the protocol to upgrade to must be " + std::string(kProtocol), Status::kUsage});
  const auto seat = std::make_shared<ConsoleSeat>(context.consoles);
  if (!seat->has())
    return error_reply(
        {kOperation, "", std::to_string(kMaxConsoles) + " clients are attached already", Status::kBusy});
  reply.upgrade = kProtocol;
  reply.take_over = [&vm = context.vm, seat](int fd, std::string_view early) {
    make_this_thread_ordinary(); // a guest that prints without end must not take a processor from the vCPUs
    // Out of descriptors: the client sees it closed.
    [[maybe_unused]] const auto served = vm.serve_console(fd, std::as_bytes(std::span(early)));
  };
  return reply;
}

} // namespace stopvisor::vmm
