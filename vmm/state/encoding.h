// SPDX-License-Identifier: Apache-2.0
// How the payload of a section is written and read: little-endian numbers one after the other, without padding.
//
// What is read comes from a file, and may be anything. A reader that was asked for more than there is, or that was
// told that a value cannot be, is refused from then on: it gives zeros, and says why once at the end. So code that
// reads is one straight list of fields, with no check after each.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace stopvisor::vmm {

class StateWriter {
public:
  template <std::unsigned_integral Number>
  void put(Number number) {
    for (size_t byte = 0; byte < sizeof number; ++byte)
      bytes_.push_back(static_cast<std::byte>(number >> (8 * byte) & 0xff));
  }
  void put(bool flag) { put(static_cast<uint8_t>(flag ? 1 : 0)); }
  void put_bytes(std::span<const std::byte> bytes) { bytes_.insert(bytes_.end(), bytes.begin(), bytes.end()); }
  [[nodiscard]] std::vector<std::byte> take() { return std::move(bytes_); }

private:
  std::vector<std::byte> bytes_;
};

class StateReader {
public:
  // `payload` outlives the reader.
  explicit StateReader(std::span<const std::byte> payload) noexcept : left_(payload) {}

  template <std::unsigned_integral Number>
  [[nodiscard]] Number get() noexcept {
    const auto bytes = get_bytes(sizeof(Number));
    uint64_t number = 0;
    for (size_t byte = 0; byte < bytes.size(); ++byte)
      number |= std::to_integer<uint64_t>(bytes[byte]) << (8 * byte);
    return static_cast<Number>(number);
  }
  [[nodiscard]] bool get_flag() noexcept {
    const auto byte = get<uint8_t>();
    if (byte > 1)
      refuse("a flag that is neither 0 nor 1");
    return byte == 1;
  }
  // RETURNS: empty where there are fewer left; the reader is refused then.
  [[nodiscard]] std::span<const std::byte> get_bytes(size_t count) noexcept {
    if (why_ != nullptr || count > left_.size()) {
      refuse("it is too short");
      return {};
    }
    const auto bytes = left_.first(count);
    left_ = left_.subspan(count);
    return bytes;
  }
  [[nodiscard]] size_t left() const noexcept { return why_ != nullptr ? 0 : left_.size(); }

  // What was read cannot be. The first reason counts; a literal.
  void refuse(const char* why) noexcept {
    if (why_ == nullptr)
      why_ = why;
  }
  void refuse_unless(bool good, const char* why) noexcept {
    if (!good)
      refuse(why);
  }
  // Nothing else is to come. RETURNS: null where everything was read and could be, else why not.
  [[nodiscard]] const char* finish() noexcept {
    if (why_ == nullptr && !left_.empty())
      why_ = "it is too long";
    return why_;
  }

private:
  std::span<const std::byte> left_;
  const char* why_ = nullptr;
};

// The same list of fields for both directions: io(a, b, c) puts them, or gets them.
class PutFields {
public:
  explicit PutFields(StateWriter& to) noexcept : to_(to) {}
  template <class... Field>
  void operator()(const Field&... fields) const {
    (put(fields), ...);
  }

private:
  void put(std::integral auto number) const { to_.put(number); }
  template <class Element, size_t count>
  void put(const Element (&elements)[count]) const {
    for (const Element& element : elements)
      put(element);
  }
  template <class Element, size_t count>
  void put(const std::array<Element, count>& elements) const {
    for (const Element& element : elements)
      put(element);
  }
  StateWriter& to_;
};

class GetFields {
public:
  explicit GetFields(StateReader& from) noexcept : from_(from) {}
  template <class... Field>
  void operator()(Field&... fields) const {
    (get(fields), ...);
  }

private:
  void get(bool& flag) const { flag = from_.get_flag(); }
  template <std::unsigned_integral Number>
  void get(Number& number) const {
    number = from_.get<Number>();
  }
  template <class Element, size_t count>
  void get(Element (&elements)[count]) const {
    for (Element& element : elements)
      get(element);
  }
  template <class Element, size_t count>
  void get(std::array<Element, count>& elements) const {
    for (Element& element : elements)
      get(element);
  }
  StateReader& from_;
};

void put_fields(StateWriter& to, const auto&... fields) {
  const PutFields io(to);
  io(fields...);
}
void get_fields(StateReader& from, auto&... fields) {
  const GetFields io(from);
  io(fields...);
}

} // namespace stopvisor::vmm
