// SPDX-License-Identifier: Apache-2.0
// A link on which both sides have said who they are.
#pragma once

#include <expected>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "tools/migrate/address.h"
#include "tools/migrate/frame.h"
#include "tools/migrate/link.h"
#include "tools/migrate/messages.h"
#include "tools/migrate/voice.h"
#include "vmm/error.h"

namespace stopvisor::migrate {

class Call {
public:
  // The source's: dials, says hello, hears the welcome. CONTEXT: any thread; blocks. RETURNS: dial()'s errors,
  // those of a link, what the destination refused it with.
  [[nodiscard]] static std::expected<std::unique_ptr<Call>, vmm::Error> make(std::string_view operation,
                                                                             const Address& address, bool insecure,
                                                                             const Hello& hello,
                                                                             const std::stop_token& stop);
  // The destination's: reads the hello of whoever has called, and answers it where that can be agreed on; refuses
  // it otherwise. `patience` is the link's until the hello is there. CONTEXT: any thread; blocks. RETURNS: as
  // make().
  [[nodiscard]] static std::expected<std::unique_ptr<Call>, vmm::Error> take(std::string_view operation,
                                                                             std::unique_ptr<Link> link,
                                                                             std::chrono::milliseconds patience,
                                                                             const std::stop_token& stop = {});

  [[nodiscard]] const Hello& hello() const noexcept { return hello_; }
  [[nodiscard]] const Welcome& welcome() const noexcept { return welcome_; }
  [[nodiscard]] Link& link() noexcept { return *link_; }
  [[nodiscard]] Voice& voice() noexcept { return voice_; }
  // CONTEXT: one thread at a time.
  [[nodiscard]] FrameReader& reader() noexcept { return reader_; }

  // Says that we want it, the first thing after a welcome was said. RETURNS: Link::write()'s errors.
  [[nodiscard]] std::expected<void, vmm::Error> answer();
  // The next frame, which must be of this kind. RETURNS: FrameReader::read()'s errors, the other side's refusal,
  // kFailed where it is another one. CONTEXT: as reader().
  [[nodiscard]] std::expected<Frame, vmm::Error> expect(FrameKind kind);
  // Best effort: the other side is told why there is nothing more to say.
  void refuse(const vmm::Error& why) noexcept;
  // What a frame says of why the other side has nothing more to say, as our error.
  [[nodiscard]] vmm::Error refused_by(const Frame& refusal) const;

private:
  Call(std::string_view operation, std::unique_ptr<Link> link)
      : operation_(operation), link_(std::move(link)), reader_(*link_), voice_(*link_) {}

  std::string operation_;
  std::unique_ptr<Link> link_;
  FrameReader reader_;
  Voice voice_;
  Hello hello_;
  Welcome welcome_;
};

// Reads a call's frames on a thread of its own, from now on, until the link is gone or somebody says so.
class Ear {
public:
  struct Heard {
    Frame frame;
    std::expected<void, vmm::Error> link; // why nothing more is to come; no frame then
  };
  // `of_use`: what the peer may say now; frames of other kinds come without their payload, which may be large.
  // `hear`, RETURNS: whether there is room for more; the link is cut where there is none, and that is heard.
  // CONTEXT of it: the ear's thread; it must not block for long. `call` outlives the object.
  Ear(Call& call, std::vector<FrameKind> of_use, std::function<bool(Heard)> hear);
  // Cuts the link.
  ~Ear();
  Ear(const Ear&) = delete;
  Ear& operator=(const Ear&) = delete;

private:
  Call& call_;
  std::thread thread_;
};

} // namespace stopvisor::migrate
