// SPDX-License-Identifier: Apache-2.0
// What a user may have meant by a word that is not known: of the verbs, a verb's options, a patch file's fields.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace stopvisor::vmm {

// CONTEXT: any thread; does not block.
// RETURNS: the one of `known` that is nearest to `given`: begins with it, or is at most two letters away from it.
// Empty where none is.
[[nodiscard]] std::string did_you_mean(std::string_view given, std::span<const std::string> known);

} // namespace stopvisor::vmm
