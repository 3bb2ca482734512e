// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>

#include "vmm/control/request.h"

namespace stopvisor::vmm {
namespace {

int http_status_of(Status status) {
  switch (status) {
  case Status::kDone:
    return 200;
  case Status::kFailed:
    return 500;
  case Status::kUsage:
    return 400;
  case Status::kRefused:
  case Status::kDrift:
    return 409;
  case Status::kBusy:
    return 503;
  }
  return 500;
}

} // namespace

ApiReply error_reply(const Error& error) {
  return error_reply(error, http_status_of(error.status));
}

ApiReply error_reply(const Error& error, int http_status) {
  const nlohmann::ordered_json document = {{"error",
                                            {{"operation", error.operation},
                                             {"object", error.object},
                                             {"reason", error.reason},
                                             {"status", int(error.status)},
                                             {"message", error.message()}}}};
  ApiReply reply;
  reply.http_status = http_status;
  // replace: a client's own bytes may be quoted, and need not be UTF-8
  reply.body = document.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  return reply;
}

} // namespace stopvisor::vmm
