// SPDX-License-Identifier: Apache-2.0
// Whether this is built for AddressSanitizer: clang 19 and gcc say it in different words.
//
// What it looks for is not a matter of how much is run, and everything is many times slower: tests whose length is
// a choice do less under it. The build without it runs them at full length.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#define STOPVISOR_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define STOPVISOR_ASAN 1
#endif
#endif

namespace stopvisor {

#if defined(STOPVISOR_ASAN)
inline constexpr bool kAddressSanitizer = true;
#else
inline constexpr bool kAddressSanitizer = false;
#endif

} // namespace stopvisor
