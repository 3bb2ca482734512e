// SPDX-License-Identifier: Apache-2.0
#include "tools/migrate/call.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "vmm/urgent_thread.h"

namespace stopvisor::migrate {

using vmm::Error;

std::expected<std::unique_ptr<Call>, Error> Call::make(std::string_view operation, const Address& address,
                                                       bool insecure, const Hello& hello,
                                                       const std::stop_token& stop) {
  auto link = dial(operation, address, insecure, stop);
  if (!link)
    return std::unexpected(std::move(link.error()));
  std::unique_ptr<Call> call(new Call(operation, *std::move(link)));
  const std::stop_callback cut(stop, [&link = call->link()] { link.cut(); }); // `call` is empty when it is returned
  call->hello_ = hello;
  if (auto said = call->voice_.say(FrameKind::kHello, encode(hello)); !said)
    return std::unexpected(std::move(said.error()));
  const auto frame = call->expect(FrameKind::kWelcome);
  if (!frame)
    return std::unexpected(frame.error());
  auto welcome = decode_welcome(operation, frame->payload);
  if (!welcome)
    return std::unexpected(std::move(welcome.error()));
  if (welcome->version < hello.least_version || welcome->version > hello.most_version ||
      (welcome->features & ~hello.features) != 0)
    return std::unexpected(call->link_->error("answers with what was not offered"));
  call->welcome_ = *std::move(welcome);
  return call;
}

std::expected<std::unique_ptr<Call>, Error> Call::take(std::string_view operation, std::unique_ptr<Link> link,
                                                       std::chrono::milliseconds patience,
                                                       const std::stop_token& stop) {
  std::unique_ptr<Call> call(new Call(operation, std::move(link)));
  const std::stop_callback cut(stop, [&to = call->link()] { to.cut(); });
  call->link_->set_patience(patience);
  const auto frame = call->expect(FrameKind::kHello);
  if (!frame)
    return std::unexpected(frame.error());
  auto hello = decode_hello(operation, frame->payload);
  auto welcome = hello ? agree(operation, *hello) : std::unexpected(hello.error());
  if (!welcome) {
    call->refuse(welcome.error());
    return std::unexpected(std::move(welcome.error()));
  }
  call->hello_ = *std::move(hello);
  call->welcome_ = *std::move(welcome);
  call->link_->set_patience(Link::kPatience);
  return call;
}

std::expected<void, Error> Call::answer() {
  return voice_.say(FrameKind::kWelcome, encode(welcome_));
}

std::expected<Frame, Error> Call::expect(FrameKind kind) {
  Frame frame;
  if (auto read = reader_.read(frame); !read)
    return std::unexpected(std::move(read.error()));
  if (frame.kind == FrameKind::kRefusal)
    return std::unexpected(refused_by(frame));
  if (frame.kind != kind)
    return std::unexpected(link_->error("sends message " + std::to_string(int(frame.kind)) + " in place of " +
                                        std::to_string(int(kind))));
  return frame;
}

void Call::refuse(const Error& why) noexcept {
  try {
    std::ignore = voice_.say(FrameKind::kRefusal, encode(why)); // the link may be what is wrong
  } catch (...) {
    return; // no memory: the other side learns it from the end of the link
  }
}

Error Call::refused_by(const Frame& refusal) const {
  auto why = decode_refusal(operation_, refusal.payload);
  if (!why)
    return why.error();
  Error error = link_->error("refuses: " + why->message());
  error.status = why->status;
  return error;
}

Ear::Ear(Call& call, std::vector<FrameKind> of_use, std::function<bool(Heard)> hear)
    : call_(call), thread_([this, of_use = std::move(of_use), hear = std::move(hear)] {
        vmm::make_this_thread_urgent(); // few words, for which a held guest waits
        for (;;) {
          Heard heard;
          heard.link = call_.reader().read(heard.frame);
          const bool last = !heard.link;
          if (std::ranges::find(of_use, heard.frame.kind) == of_use.end())
            heard.frame.payload = {};
          const bool room = hear(std::move(heard));
          if (last)
            return;
          if (!room)
            call_.link().cut();
        }
      }) {}

Ear::~Ear() {
  call_.link().cut();
  thread_.join();
}

} // namespace stopvisor::migrate
