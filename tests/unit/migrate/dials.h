// SPDX-License-Identifier: Apache-2.0
// Callers and those who are called, for tests.
#pragma once

#include <stop_token>
#include <string>

#include <gtest/gtest.h>

#include "tests/unit/migrate/links.h"
#include "tools/migrate/address.h"
#include "tools/migrate/link.h"

namespace stopvisor::migrate::testing {

inline Address address_of(const std::string& text, Side side) {
  auto address = parse_address("test", text, side);
  EXPECT_TRUE(address) << address.error().message();
  return address ? *address : Address{};
}
inline auto call(const std::string& text, bool insecure = false, const std::stop_token& stop = {}) {
  return dial("migrate", address_of(text, Side::kSource), insecure, stop);
}
inline auto listen(const std::string& text, bool insecure = false) {
  return Listener::open("run", address_of(text, Side::kDestination), insecure);
}

// Calls, is called, and speaks both ways.
inline void expect_talk(Listener& listener, const std::string& place) {
  auto caller = call(place);
  ASSERT_TRUE(caller) << caller.error().message();
  auto called = listener.accept({}, kLong);
  ASSERT_TRUE(called && *called);
  ASSERT_TRUE(write(**caller, "hello"));
  EXPECT_EQ(read(**called, 5), "hello");
  ASSERT_TRUE(write(**called, "welcome"));
  EXPECT_EQ(read(**caller, 7), "welcome");
}

} // namespace stopvisor::migrate::testing
