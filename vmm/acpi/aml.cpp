// SPDX-License-Identifier: Apache-2.0
#include "vmm/acpi/aml.h"

#include <cassert>

namespace stopvisor::vmm::aml {
namespace {

// ACPI 6.5, 20.2: opcodes and prefixes.
constexpr uint8_t kZeroOp = 0x00, kOneOp = 0x01, kNameOp = 0x08, kBytePrefix = 0x0a, kWordPrefix = 0x0b,
                  kDwordPrefix = 0x0c, kStringPrefix = 0x0d, kQwordPrefix = 0x0e, kScopeOp = 0x10, kBufferOp = 0x11,
                  kPackageOp = 0x12, kMethodOp = 0x14, kDualNamePrefix = 0x2e, kMultiNamePrefix = 0x2f,
                  kExtOpPrefix = 0x5b, kLocal0Op = 0x60, kStoreOp = 0x70, kAndOp = 0x7b, kNotifyOp = 0x86,
                  kIfOp = 0xa0;
constexpr uint8_t kExtRegionOp = 0x80, kExtFieldOp = 0x81, kExtDeviceOp = 0x82;
constexpr uint8_t kSerialized = 0x08;      // MethodFlags
constexpr uint8_t kSystemIo = 0x01;        // RegionSpace
constexpr uint8_t kDwordWriteZeros = 0x43; // FieldFlags: DWordAcc, NoLock, WriteAsZeros

void put(Bytes& to, std::initializer_list<uint8_t> bytes) {
  for (const uint8_t byte : bytes)
    to.push_back(std::byte{byte});
}

void put_little_endian(Bytes& to, uint64_t value, unsigned bytes) {
  for (unsigned i = 0; i < bytes; ++i)
    to.push_back(static_cast<std::byte>(value >> (8 * i)));
}

void append(Bytes& to, const Bytes& more) {
  to.insert(to.end(), more.begin(), more.end());
}

// PkgLength: 6 bits in one byte, else 4 bits and up to three bytes more; `bytes` of it are its own.
void put_package_length(Bytes& to, size_t value, unsigned bytes) {
  assert(bytes <= 4 && value < (bytes == 1 ? 1U << 6 : 1U << (4 + 8 * (bytes - 1))));
  if (bytes == 1)
    return put(to, {static_cast<uint8_t>(value)});
  put(to, {static_cast<uint8_t>((bytes - 1) << 6 | (value & 0xf))});
  put_little_endian(to, value >> 4, bytes - 1);
}

// The length of `payload_bytes` and of itself.
void put_length(Bytes& to, size_t payload_bytes) {
  unsigned own = 1;
  if (payload_bytes + own >= 1U << 6) // 4 bytes hold 28 bits, more than a table of ours can have
    for (own = 2; own < 4 && payload_bytes + own >= 1U << (4 + 8 * (own - 1));)
      ++own;
  put_package_length(to, payload_bytes + own, own);
}

Bytes with_length(std::initializer_list<uint8_t> opcode, const Bytes& payload) {
  Bytes result;
  put(result, opcode);
  put_length(result, payload.size());
  append(result, payload);
  return result;
}

Bytes joined(Bytes head, std::initializer_list<Bytes> terms) {
  for (const Bytes& term : terms)
    append(head, term);
  return head;
}

} // namespace

Bytes name_path(std::string_view path) {
  constexpr size_t kSegmentBytes = 4;
  Bytes result;
  if (path.starts_with('\\')) {
    put(result, {'\\'});
    path.remove_prefix(1);
  }
  Bytes segments;
  uint8_t count = 0;
  while (!path.empty()) {
    const std::string_view segment = path.substr(0, path.find('.'));
    assert(!segment.empty() && segment.size() <= kSegmentBytes);
    for (size_t i = 0; i < kSegmentBytes; ++i)
      put(segments, {static_cast<uint8_t>(i < segment.size() ? segment[i] : '_')});
    ++count;
    path.remove_prefix(std::min(path.size(), segment.size() + 1));
  }
  if (count == 2)
    put(result, {kDualNamePrefix});
  else if (count > 2)
    put(result, {kMultiNamePrefix, count});
  append(result, segments);
  return result;
}

Bytes integer(uint64_t value) {
  Bytes result;
  if (value <= 1) {
    put(result, {value == 0 ? kZeroOp : kOneOp});
  } else if (value <= UINT8_MAX) {
    put(result, {kBytePrefix});
    put_little_endian(result, value, 1);
  } else if (value <= UINT16_MAX) {
    put(result, {kWordPrefix});
    put_little_endian(result, value, 2);
  } else if (value <= UINT32_MAX) {
    put(result, {kDwordPrefix});
    put_little_endian(result, value, 4);
  } else {
    put(result, {kQwordPrefix});
    put_little_endian(result, value, 8);
  }
  return result;
}

Bytes text(std::string_view value) {
  Bytes result;
  put(result, {kStringPrefix});
  for (const char c : value)
    put(result, {static_cast<uint8_t>(c)});
  put(result, {0});
  return result;
}

// Five bits a letter, four a digit, the first letter highest; the bytes in the order in which they are written.
Bytes eisa_id(std::string_view id) {
  assert(id.size() == 7);
  uint32_t value = 0;
  for (const char c : id.substr(0, 3))
    value = value << 5 | static_cast<uint32_t>(c - '@');
  for (const char c : id.substr(3))
    value = value << 4 | static_cast<uint32_t>(c <= '9' ? c - '0' : c - 'A' + 10);
  return integer(__builtin_bswap32(value));
}

Bytes buffer(std::span<const std::byte> bytes) {
  Bytes payload = integer(bytes.size());
  payload.insert(payload.end(), bytes.begin(), bytes.end());
  return with_length({kBufferOp}, payload);
}

Bytes package(std::initializer_list<Bytes> elements) {
  assert(elements.size() <= UINT8_MAX);
  return with_length({kPackageOp}, joined({static_cast<std::byte>(elements.size())}, elements));
}

Bytes name(std::string_view path, const Bytes& value) {
  Bytes result;
  put(result, {kNameOp});
  append(result, name_path(path));
  append(result, value);
  return result;
}

Bytes scope(std::string_view path, std::initializer_list<Bytes> terms) {
  return with_length({kScopeOp}, joined(name_path(path), terms));
}

Bytes device(std::string_view path, std::initializer_list<Bytes> terms) {
  return with_length({kExtOpPrefix, kExtDeviceOp}, joined(name_path(path), terms));
}

Bytes method(std::string_view path, unsigned arguments, std::initializer_list<Bytes> terms) {
  assert(arguments <= 7);
  Bytes head = name_path(path);
  put(head, {static_cast<uint8_t>(arguments | kSerialized)});
  return with_length({kMethodOp}, joined(std::move(head), terms));
}

Bytes port_register32(std::string_view region, std::string_view field, uint16_t port) {
  Bytes result;
  put(result, {kExtOpPrefix, kExtRegionOp});
  append(result, name_path(region));
  put(result, {kSystemIo});
  append(result, integer(port));
  append(result, integer(4));
  Bytes fields = name_path(region);
  put(fields, {kDwordWriteZeros});
  append(fields, name_path(field));
  put_package_length(fields, 32, 1); // bits
  append(result, with_length({kExtOpPrefix, kExtFieldOp}, fields));
  return result;
}

Bytes local0() {
  return {std::byte{kLocal0Op}};
}

Bytes store(const Bytes& from, const Bytes& to) {
  Bytes result;
  put(result, {kStoreOp});
  append(result, from);
  append(result, to);
  return result;
}

Bytes if_set(const Bytes& value, uint64_t mask, std::initializer_list<Bytes> terms) {
  Bytes test;
  put(test, {kAndOp});
  append(test, value);
  append(test, integer(mask));
  put(test, {kZeroOp}); // no target
  return with_length({kIfOp}, joined(std::move(test), terms));
}

Bytes notify(std::string_view path, uint64_t value) {
  Bytes result;
  put(result, {kNotifyOp});
  append(result, name_path(path));
  append(result, integer(value));
  return result;
}

Bytes resources(std::initializer_list<Bytes> descriptors) {
  Bytes list = joined({}, descriptors);
  put(list, {0x79, 0}); // end tag; a checksum of 0 is taken as right
  return buffer(list);
}

Bytes io_ports(uint16_t first, uint8_t count) {
  Bytes result;
  put(result, {0x47, 1}); // I/O port descriptor, 16 bits are decoded
  put_little_endian(result, first, 2);
  put_little_endian(result, first, 2);
  put(result, {0, count}); // it does not move, so that it needs no alignment
  return result;
}

Bytes memory32(uint32_t gpa, uint32_t size_bytes) {
  Bytes result;
  put(result, {0x86, 9, 0, 1}); // 32-bit fixed memory range descriptor, read and write
  put_little_endian(result, gpa, 4);
  put_little_endian(result, size_bytes, 4);
  return result;
}

Bytes interrupt(uint32_t gsi) {
  constexpr uint8_t kConsumerEdge = 0x03;
  Bytes result;
  put(result, {0x89, 6, 0, kConsumerEdge, 1}); // extended interrupt descriptor, of one
  put_little_endian(result, gsi, 4);
  return result;
}

} // namespace stopvisor::vmm::aml
