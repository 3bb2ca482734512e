// SPDX-License-Identifier: Apache-2.0
// The error value every fallible operation of the VMM and its tools returns.
//
// An error names the operation, the object and the reason, in the words of the user who caused it, and
// carries the exit status the command ends with. It is a value: nothing here throws or logs.
#pragma once

#include <string>
#include <string_view>

namespace stopvisor::vmm {

// Exit statuses users see (docs/reference/command.md).
enum class Status : int {
  kDone = 0,
  kFailed = 1,
  kUsage = 2,
  kRefused = 3, // a check refused, nothing changed
  kBusy = 4,    // busy or deadline passed, try again
  kDrift = 5,   // what is there is not what we wrote
};

struct Error {
  std::string operation; // "start VM", "peek"
  std::string object;    // "vm1", "gpa:0x1000", may be empty
  std::string reason;    // "no such VM", without a final full stop
  Status status = Status::kFailed;

  // "operation: object: reason", leaving out an empty object.
  [[nodiscard]] std::string message() const;
  // The same without the operation, for an error of another one.
  [[nodiscard]] std::string text() const;
};

// An error whose reason ends with the text of `error_number` (an errno value).
[[nodiscard]] Error system_error(std::string_view operation, std::string_view object, int error_number,
                                 Status status = Status::kFailed);

} // namespace stopvisor::vmm
