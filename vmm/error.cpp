// SPDX-License-Identifier: Apache-2.0
#include "vmm/error.h"

#include <system_error>

namespace stopvisor::vmm {

std::string Error::message() const {
  return operation.empty() ? text() : operation + ": " + text();
}

std::string Error::text() const {
  return object.empty() ? reason : object + ": " + reason;
}

Error system_error(std::string_view operation, std::string_view object, int error_number, Status status) {
  return Error{std::string(operation), std::string(object), std::generic_category().message(error_number), status};
}

} // namespace stopvisor::vmm
