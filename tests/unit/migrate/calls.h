// SPDX-License-Identifier: Apache-2.0
// Two sides that call each other, for tests.
#pragma once

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <memory>
#include <stop_token>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "tools/migrate/address.h"
#include "tools/migrate/call.h"
#include "tools/migrate/link.h"

namespace stopvisor::migrate::testing {

inline constexpr std::chrono::milliseconds kPatient{60'000};

// A place where somebody can be called, which goes with the test.
class Place {
public:
  Place() {
    std::string folder = (std::filesystem::temp_directory_path() / "stopvisor-calls-XXXXXX").string();
    if (::mkdtemp(folder.data()) != nullptr)
      folder_ = folder;
    listener_ = Listener::open("test", address(Side::kDestination), false).value();
  }
  ~Place() {
    listener_.reset();
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;

  [[nodiscard]] Listener& listener() noexcept { return *listener_; }
  [[nodiscard]] Address address(Side side = Side::kSource) const {
    return parse_address("test", "unix:" + folder_ + "/door", side).value();
  }
  // Somebody who has called and said nothing yet.
  [[nodiscard]] std::unique_ptr<Link> dial() const { return migrate::dial("caller", address(), false, {}).value(); }
  [[nodiscard]] std::expected<std::unique_ptr<Call>, vmm::Error> call(const Hello& hello,
                                                                      const std::stop_token& stop = {}) const {
    return Call::make("source", address(), false, hello, stop);
  }

private:
  std::string folder_;
  std::unique_ptr<Listener> listener_;
};

inline Hello hello_of(std::byte id, LinkRole role = LinkRole::kControl, uint16_t number = 0) {
  Hello hello;
  hello.features = kOurFeatures;
  hello.id.fill(id);
  hello.role = role;
  hello.number = number;
  hello.vm = "vm";
  hello.program = "test";
  return hello;
}

// A link on which both sides have said who they are.
struct CallPair {
  explicit CallPair(Place& place, const Hello& hello = hello_of(std::byte{1})) {
    auto calling = std::async(std::launch::async, [&] { return place.call(hello); });
    auto link = place.listener().accept({}, kPatient).value();
    destination = Call::take("destination", std::move(link), kPatient).value();
    EXPECT_TRUE(destination->answer().has_value());
    source = calling.get().value();
    source->link().set_patience(kPatient);
    destination->link().set_patience(kPatient);
  }
  std::unique_ptr<Call> source;
  std::unique_ptr<Call> destination;
};

} // namespace stopvisor::migrate::testing
