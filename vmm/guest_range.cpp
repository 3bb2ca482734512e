// SPDX-License-Identifier: Apache-2.0
#include "vmm/guest_range.h"

#include <algorithm>
#include <string>
#include <utility>

#include "vmm/page_walk.h"
#include "vmm/units.h"

namespace stopvisor::vmm {
namespace {

using Pieces = std::vector<std::span<std::byte>>;

std::unexpected<Error> refuse(std::string_view operation, const GuestAddress& address, std::string reason,
                              Status status) {
  return std::unexpected(Error{std::string(operation), to_string(address), std::move(reason), status});
}

std::expected<Pieces, Error> resolve_virtual(std::string_view operation, const GuestAddress& address,
                                             uint64_t length, const Registers& registers,
                                             const GuestMemory& memory) {
  Pieces pieces;
  for (uint64_t done = 0; done < length;) {
    const uint64_t at = address.value + done;
    const auto page = translate(operation, Gva{at}, registers, memory);
    if (!page)
      return std::unexpected(page.error());
    const uint64_t step = std::min(length - done, page->page_bytes - (at & (page->page_bytes - 1)));
    const auto piece = memory.range(page->gpa, step);
    if (piece.empty())
      return refuse(operation, address,
                    "gva:" + to_hex(at) + " maps gpa:" + to_hex(page->gpa.value) + ", which is not RAM for " +
                        std::to_string(step) + " bytes",
                    Status::kFailed);
    pieces.push_back(piece);
    done += step;
  }
  return pieces;
}

} // namespace

std::expected<Pieces, Error> resolve_range(std::string_view operation, const GuestAddress& address, uint64_t length,
                                           const Registers& registers, const GuestMemory& memory) {
  if (length == 0)
    return refuse(operation, address, "length is 0", Status::kUsage);
  if (address.kind == GuestAddress::Kind::kSymbol)
    return refuse(operation, address, "needs symbols, and none are loaded", Status::kUsage);
  if (length - 1 > UINT64_MAX - address.value)
    return refuse(operation, address, "runs past the end of the address space", Status::kUsage);
  if (address.kind == GuestAddress::Kind::kVirtual)
    return resolve_virtual(operation, address, length, registers, memory);
  const auto piece = memory.range(Gpa{address.value}, length);
  if (piece.empty())
    return refuse(operation, address, std::to_string(length) + " bytes there are not all RAM", Status::kFailed);
  return Pieces{piece};
}

} // namespace stopvisor::vmm
