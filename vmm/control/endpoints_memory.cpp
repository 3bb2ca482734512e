// SPDX-License-Identifier: Apache-2.0
// Peek and poke: each looks and writes inside one stop, whether the VM runs or is held.
#include <algorithm>
#include <numeric>

#include <nlohmann/json.hpp>

#include "vmm/control/endpoints.h"
#include "vmm/control/fields.h"
#include "vmm/control/guest_access.h"
#include "vmm/guest_address.h"

namespace stopvisor::vmm {
namespace {

constexpr uint64_t kMaxBytes = 1 << 20; // of one request: what is copied while the guest is held
constexpr size_t kMaxWrites = 4096;
constexpr size_t kShownBytes = 16;

std::string spaced_hex(std::span<const std::byte> bytes) {
  std::string text;
  for (const std::byte& byte : bytes.first(std::min(bytes.size(), kShownBytes)))
    text += (text.empty() ? "" : " ") + hex_of({&byte, 1});
  return text + (bytes.size() > kShownBytes ? " ..." : "");
}

struct Write {
  GuestAddress address;
  std::vector<std::byte> bytes;
  std::optional<std::vector<std::byte>> expect;
  std::vector<std::byte> found; // room for what is compared
  Pieces pieces;
};

// RETURNS: kUsage.
std::expected<Write, Error> read_write(Fields& fields) {
  Write write;
  const auto address = fields.text("address");
  fields.require("address", address.has_value());
  auto bytes = fields.bytes("bytes");
  fields.require("bytes", bytes.has_value());
  write.expect = fields.bytes("expect");
  if (auto fine = fields.finish(); !fine)
    return std::unexpected(fine.error());
  auto parsed = parse_guest_address("poke", *address);
  if (!parsed)
    return std::unexpected(parsed.error());
  write.address = *parsed;
  write.bytes = std::move(*bytes);
  if (write.expect && write.expect->size() != write.bytes.size())
    return std::unexpected(Error{"poke", to_string(write.address),
                                 "bytes to write: " + std::to_string(write.bytes.size()) +
                                     ", bytes to expect there: " + std::to_string(write.expect->size()) +
                                     "; must be as many",
                                 Status::kUsage});
  if (write.expect)
    write.found.resize(write.bytes.size());
  return write;
}

std::expected<std::vector<Write>, Error> read_writes(std::vector<Fields> list) {
  std::vector<Write> writes;
  uint64_t total = 0;
  for (Fields& fields : list) {
    auto write = read_write(fields);
    if (!write)
      return std::unexpected(write.error());
    total += write->bytes.size();
    writes.push_back(std::move(*write));
  }
  if (total > kMaxBytes)
    return std::unexpected(Error{"poke", "",
                                 std::to_string(total) + " bytes: at most " + std::to_string(kMaxBytes) +
                                     " may be written in one stop",
                                 Status::kUsage});
  return writes;
}

Error mismatch(const std::vector<Write>& writes, const Write& write) {
  const auto differ = std::ranges::mismatch(*write.expect, write.found);
  const auto offset = size_t(differ.in1 - write.expect->begin());
  const size_t first = offset / kShownBytes * kShownBytes;
  std::string object = to_string(write.address);
  if (writes.size() > 1)
    object = "write " + std::to_string(&write - writes.data() + 1) + " (" + object + ")";
  return {"poke", object,
          (first > 0 ? "at +" + std::to_string(first) + " " : std::string()) + "expected " +
              spaced_hex(std::span(*write.expect).subspan(first)) + ", found " +
              spaced_hex(std::span(write.found).subspan(first)) + "; nothing was written",
          Status::kRefused};
}

// All ranges, then all comparisons, then all writes.
std::expected<void, Error> compare_and_write(ApiContext& context, std::vector<Write>& writes,
                                             const LinuxKernel* kernel) {
  for (Write& write : writes) {
    auto pieces = find_pieces(context.vm, "poke", write.address, write.bytes.size(), kernel);
    if (!pieces)
      return std::unexpected(pieces.error());
    write.pieces = std::move(*pieces);
  }
  for (Write& write : writes) {
    if (!write.expect)
      continue;
    copy_out(write.pieces, write.found);
    if (write.found != *write.expect)
      return std::unexpected(mismatch(writes, write));
  }
  for (const Write& write : writes) {
    copy_in(write.bytes, write.pieces);
    for (const std::span<std::byte> piece : write.pieces)
      context.vm.written_pages().note(piece); // after the bytes
  }
  return {};
}

std::expected<void, Error> write_live(ApiContext& context, std::vector<Write>& writes) {
  if (context.vm.state() == VmState::kEnded)
    return std::unexpected(context.vm.explain("poke", {.code = stopper::StopErrc::kEnded}));
  for (const Write& write : writes)
    if (write.address.kind != GuestAddress::Kind::kPhysical)
      return std::unexpected(Error{"poke", to_string(write.address),
                                   "without a stop only gpa: addresses can be written", Status::kUsage});
  // A guest that is about to go on elsewhere: its holds are closed before what was written is taken for the last
  // time, and that waits for who is in here. So either our bytes go along, or we see that they would not.
  const auto outside = context.vm.written_pages().write_outside();
  if (auto open = context.holds.check_open("poke"); !open)
    return open;
  return compare_and_write(context, writes, nullptr);
}

// Under a stop; with the guest's kernel where one of the addresses is a symbol's.
std::expected<void, Error>
with_addresses(ApiContext& context, const char* operation, bool symbols, const std::string& file,
               std::chrono::steady_clock::time_point deadline,
               stopper::FunctionRef<std::expected<void, Error>(const LinuxKernel*)> use) {
  if (!symbols)
    return under_stop(context.vm, operation, deadline, [&] { return use(nullptr); });
  return context.guest.with_kernel(operation, file, deadline,
                                   [&](const GuestKnowledge::Kernel& kernel) { return use(kernel.get()); });
}

bool is_symbol(const GuestAddress& address) {
  return address.kind == GuestAddress::Kind::kSymbol;
}

} // namespace

ApiReply serve_peek(ApiContext& context, const ApiRequest& request) {
  auto fields = Fields::of_body("peek", request.body);
  if (!fields)
    return error_reply(fields.error());
  const auto text = fields->text("address");
  fields->require("address", text.has_value());
  const auto length = fields->number("length", 1, kMaxBytes);
  fields->require("length", length.has_value());
  const std::string symbols = fields->text("symbols").value_or("");
  const auto deadline = fields->deadline();
  if (auto fine = fields->finish(); !fine)
    return error_reply(fine.error());
  const auto address = parse_guest_address("peek", *text);
  if (!address)
    return error_reply(address.error());
  std::vector<std::byte> bytes(*length);
  const auto copy = [&](const LinuxKernel* kernel) -> std::expected<void, Error> {
    auto pieces = find_pieces(context.vm, "peek", *address, bytes.size(), kernel);
    if (!pieces)
      return std::unexpected(pieces.error());
    copy_out(*pieces, bytes);
    return {};
  };
  const auto read = with_addresses(context, "peek", is_symbol(*address), symbols, deadline, copy);
  if (!read)
    return error_reply(read.error());
  ApiReply reply;
  reply.body = "{\"address\":" + nlohmann::json(to_string(*address)).dump() +
               ",\"length\":" + std::to_string(bytes.size()) + ",\"bytes\":\"" + hex_of(bytes) + "\"}";
  return reply;
}

ApiReply serve_poke(ApiContext& context, const ApiRequest& request) {
  auto fields = Fields::of_body("poke", request.body);
  if (!fields)
    return error_reply(fields.error());
  std::vector<Fields> list = fields->objects("writes", kMaxWrites);
  const bool stop = fields->flag("stop").value_or(true);
  const std::string symbols = fields->text("symbols").value_or("");
  const auto deadline = fields->deadline();
  if (auto fine = fields->finish(); !fine)
    return error_reply(fine.error());
  auto writes = read_writes(std::move(list));
  if (!writes)
    return error_reply(writes.error());
  const bool by_name = std::ranges::any_of(*writes, is_symbol, &Write::address);
  const auto apply = [&](const LinuxKernel* kernel) { return compare_and_write(context, *writes, kernel); };
  const auto written =
      stop ? with_addresses(context, "poke", by_name, symbols, deadline, apply) : write_live(context, *writes);
  if (!written)
    return error_reply(written.error());
  const size_t total = std::accumulate(writes->begin(), writes->end(), size_t{0},
                                       [](size_t sum, const Write& write) { return sum + write.bytes.size(); });
  ApiReply reply;
  reply.body = "{\"writes\":" + std::to_string(writes->size()) + ",\"bytes\":" + std::to_string(total) +
               ",\"stopped\":" + (stop ? "true" : "false") + "}";
  return reply;
}

} // namespace stopvisor::vmm
