// SPDX-License-Identifier: Apache-2.0
// peek and poke.
#include <unistd.h>

#include <algorithm>

#include <nlohmann/json.hpp>

#include "tools/client/client.h"
#include "tools/stopvisor/documents.h"
#include "tools/stopvisor/output.h"
#include "tools/stopvisor/verb.h"
#include "vmm/control/fields.h"
#include "vmm/guest_address.h"
#include "vmm/units.h"

namespace stopvisor::tools {
namespace {

using Json = nlohmann::ordered_json;
using vmm::Error;
using vmm::Status;

constexpr uint64_t kMaxPeekBytes = 1 << 20; // the API's limit, named here for a clearer message

// A length: 0x..., or decimal with K, M or G.
std::expected<uint64_t, Error> parse_length(const std::string& text) {
  std::expected<uint64_t, Error> length = 0;
  if (const auto hex = vmm::parse_hex(text))
    length = *hex;
  else
    length = vmm::parse_size("peek: LEN", text);
  if (length && (*length == 0 || *length > kMaxPeekBytes))
    return std::unexpected(
        Error{"peek: LEN", text, "must be from 1 to " + human_size(kMaxPeekBytes), Status::kUsage});
  return length;
}

// Hexadecimal digits with spaces between bytes and 0x before them allowed: "0f 1f 44", "0x0f1f44".
std::expected<std::string, Error> parse_bytes(const std::string& text) {
  std::string digits;
  size_t at = 0;
  while (at < text.size()) {
    if (text[at] == ' ') {
      ++at;
      continue;
    }
    const size_t end = std::min(text.find(' ', at), text.size());
    std::string_view word = std::string_view(text).substr(at, end - at);
    if (word.starts_with("0x") || word.starts_with("0X"))
      word.remove_prefix(2);
    if (word.empty() || !vmm::bytes_of_hex(word))
      return std::unexpected(
          Error{"poke", "\"" + text + "\"", "must be hexadecimal digits, two a byte", Status::kUsage});
    digits += word;
    at = end;
  }
  if (digits.empty())
    return std::unexpected(Error{"poke", "", "there are no bytes to write", Status::kUsage});
  return digits;
}

class PeekVerb final : public Verb {
public:
  const char* name() const noexcept override { return "peek"; }
  const char* summary() const noexcept override { return "Show guest memory, as it is at one moment"; }
  const char* details() const noexcept override {
    return "ADDR is gpa:0x... (physical), gva:0x... (virtual, by the page tables of vCPU 0; gva:0x...@2 by\n"
           "those of vCPU 2), or sym:NAME[+0x...] (of a Linux guest; sym:NAME@2 is CPU 2's copy of a per-CPU\n"
           "variable). Symbols are found in the guest's own memory, or taken from --symbols. LEN is a number of\n"
           "bytes, up to 1M; 0x and K, M are understood. All bytes are read under one stop.\n\n"
           "Examples:\n"
           "  stopvisor peek vm1 gpa:0x200000 64\n"
           "  stopvisor peek vm1 sym:linux_banner 64\n"
           "  stopvisor peek vm1 gva:0x401000@2 4K --raw > page";
  }
  void declare(Arguments& arguments) override {
    arguments.positional("VM", vm_, "Name of the VM");
    arguments.positional("ADDR", address_, "Where to begin: gpa:0x..., gva:0x...[@CPU] or sym:NAME[+0x...]");
    arguments.positional("LEN", length_, "How many bytes");
    arguments.option("--symbols", symbols_, "FILE", "The kernel's vmlinux or System.map, for sym:");
    arguments.option("--timeout", timeout_, "DURATION", "Give up, with status 4, after this long (default 5s)");
    arguments.flag("--raw", raw_, "Write the bytes themselves to stdout");
  }
  std::expected<int, Error> run(bool json) override {
    if (raw_ && json)
      return std::unexpected(Error{"peek", "", "--raw and --json exclude each other", Status::kUsage});
    if (raw_ && ::isatty(STDOUT_FILENO) == 1)
      return std::unexpected(
          Error{"peek", "", "--raw writes bytes no terminal can show: redirect them", Status::kUsage});
    const auto length = parse_length(length_);
    if (!length)
      return std::unexpected(length.error());
    if (const auto address = vmm::parse_guest_address("peek", address_); !address)
      return std::unexpected(address.error());
    const auto timeout = parse_timeout("peek", timeout_, std::chrono::seconds(5));
    if (!timeout)
      return std::unexpected(timeout.error());
    auto client = Client::connect("peek", vm_);
    if (!client)
      return std::unexpected(client.error());
    client->set_patience(*timeout + kSearchTime);
    Json body = {{"address", address_}, {"length", *length}, {"timeout_ms", timeout->count()}};
    if (symbols_)
      body["symbols"] = absolute_path(*symbols_);
    const auto answer =
        client->request("POST", "/v1/peek", body.dump(-1, ' ', false, Json::error_handler_t::replace));
    if (!answer)
      return std::unexpected(answer.error());
    if (json) {
      print_vm_document(vm_, *answer);
      return 0;
    }
    const auto document = nlohmann::json::parse(*answer, nullptr, false);
    const auto bytes = document.is_object() && document.contains("bytes") && document["bytes"].is_string()
                           ? vmm::bytes_of_hex(document["bytes"].get_ref<const std::string&>())
                           : std::nullopt;
    if (!bytes)
      return std::unexpected(strange_answer("peek", vm_));
    if (raw_)
      print_text({reinterpret_cast<const char*>(bytes->data()), bytes->size()});
    else
      print_text(hexdump(*bytes));
    return 0;
  }

private:
  std::string vm_;
  std::string address_;
  std::string length_;
  std::optional<std::string> symbols_;
  std::optional<std::string> timeout_;
  bool raw_ = false;
};

class PokeVerb final : public Verb {
public:
  const char* name() const noexcept override { return "poke"; }
  const char* summary() const noexcept override { return "Change guest memory in one stop, all or nothing"; }
  const char* details() const noexcept override {
    return "Writes every BYTES at its ADDR inside one stop: the guest sees all of them or none. BYTES are "
           "hexadecimal\n"
           "digits, two a byte, spaces between and 0x before them allowed. With --expect the guest's bytes are\n"
           "compared first, inside the same stop; where one differs nothing is written and the exit status is 3.\n"
           "Give as many --expect as there are pairs, in their order. Where pairs overlap the later one stays.\n\n"
           "Examples:\n"
           "  stopvisor poke vm1 gpa:0x800000 0100000000000000\n"
           "  stopvisor poke vm1 gpa:0x1000 'cc' gpa:0x2000 '90 90' --expect 55 --expect '48 89'";
  }
  void declare(Arguments& arguments) override {
    arguments.positional("VM", vm_, "Name of the VM");
    arguments.rest("ADDR_BYTES", pairs_, 1, "Pairs of ADDR (see 'peek') and the BYTES to write there");
    arguments.options("--expect", expected_, "BYTES", "What must be there before; once for each pair");
    arguments.option("--symbols", symbols_, "FILE", "The kernel's vmlinux or System.map, for sym:");
    arguments.option("--timeout", timeout_, "DURATION", "Give up, with status 4, after this long (default 5s)");
    arguments.flag("--no-stop", no_stop_, "Write while the guest runs, to show the difference (gpa: only)");
  }
  std::expected<int, Error> run(bool json) override {
    const auto timeout = parse_timeout("poke", timeout_, std::chrono::seconds(5));
    if (!timeout)
      return std::unexpected(timeout.error());
    const auto body = request_body(*timeout);
    if (!body)
      return std::unexpected(body.error());
    auto client = Client::connect("poke", vm_);
    if (!client)
      return std::unexpected(client.error());
    client->set_patience(*timeout + kSearchTime);
    const auto answer = client->request("POST", "/v1/poke", *body);
    if (!answer)
      return std::unexpected(answer.error());
    if (json)
      print_vm_document(vm_, *answer);
    return 0;
  }

private:
  std::expected<std::string, Error> request_body(std::chrono::milliseconds timeout) const {
    if (pairs_.size() % 2 != 0)
      return std::unexpected(Error{"poke", "", "every ADDR needs its BYTES", Status::kUsage});
    const size_t count = pairs_.size() / 2;
    if (!expected_.empty() && expected_.size() != count)
      return std::unexpected(Error{"poke", "",
                                   std::to_string(count) + " ADDR BYTES pairs, but " +
                                       std::to_string(expected_.size()) +
                                       " --expect; give one for each pair, or none",
                                   Status::kUsage});
    Json writes = Json::array();
    for (size_t i = 0; i < count; ++i) {
      if (const auto address = vmm::parse_guest_address("poke", pairs_[2 * i]); !address)
        return std::unexpected(address.error());
      const auto bytes = parse_bytes(pairs_[2 * i + 1]);
      if (!bytes)
        return std::unexpected(bytes.error());
      Json write = {{"address", pairs_[2 * i]}, {"bytes", *bytes}};
      if (!expected_.empty()) {
        const auto expect = parse_bytes(expected_[i]);
        if (!expect)
          return std::unexpected(expect.error());
        write["expect"] = *expect;
      }
      writes.push_back(std::move(write));
    }
    Json body = {{"writes", std::move(writes)}, {"stop", !no_stop_}, {"timeout_ms", timeout.count()}};
    if (symbols_)
      body["symbols"] = absolute_path(*symbols_);
    return body.dump(-1, ' ', false, Json::error_handler_t::replace);
  }

  std::string vm_;
  std::vector<std::string> pairs_;
  std::vector<std::string> expected_;
  std::optional<std::string> symbols_;
  std::optional<std::string> timeout_;
  bool no_stop_ = false;
};

} // namespace

std::unique_ptr<Verb> make_peek() {
  return std::make_unique<PeekVerb>();
}
std::unique_ptr<Verb> make_poke() {
  return std::make_unique<PokeVerb>();
}

} // namespace stopvisor::tools
