// SPDX-License-Identifier: Apache-2.0
// Guests of a few bytes of machine code, booted like any other: as a PVH ELF file.
//
// They start at raw_guest::kEntry in 32-bit protected mode without paging, as PVH has it.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

#include "tests/unit/bzimage_builder.h"
#include "tests/unit/elf_builder.h"

namespace stopvisor::vmm::testing {

inline constexpr uint64_t kRawEntry = 0x10'0000;

// The file a raw guest is booted from; removed with the object.
class RawKernel {
public:
  explicit RawKernel(const std::vector<uint8_t>& code) : RawKernel(pvh_file(code)) {}
  // Of any kind.
  explicit RawKernel(const std::vector<std::byte>& file) {
    char name[] = "/tmp/stopvisor-raw-XXXXXX";
    const int fd = ::mkstemp(name);
    path_ = name;
    if (fd < 0 || ::write(fd, file.data(), file.size()) != static_cast<ssize_t>(file.size()))
      std::abort();
    ::close(fd);
  }
  ~RawKernel() { ::unlink(path_.c_str()); }
  RawKernel(const RawKernel&) = delete;
  RawKernel& operator=(const RawKernel&) = delete;

  [[nodiscard]] const std::string& path() const { return path_; }

private:
  static std::vector<std::byte> pvh_file(const std::vector<uint8_t>& code) {
    std::vector<std::byte> bytes(code.size());
    std::memcpy(bytes.data(), code.data(), code.size());
    ElfBuilder<> builder;
    builder.load(kRawEntry, bytes, bytes.size());
    builder.note(pvh_note(kRawEntry));
    return builder.build();
  }

  std::string path_;
};

// A bzImage whose 64-bit entry is this code.
inline std::vector<std::byte> bzimage_of(const std::vector<uint8_t>& code) {
  std::vector<std::byte> bytes(kEntry64Offset + code.size());
  std::memcpy(bytes.data() + kEntry64Offset, code.data(), code.size());
  BzImageBuilder builder;
  builder.code(std::move(bytes));
  return builder.build();
}

// Machine code, put together from the pieces the tests need.
class Code {
public:
  Code& bytes(std::initializer_list<uint8_t> more) {
    code_.insert(code_.end(), more);
    return *this;
  }
  // mov $port, %dx; mov $value, %eax; out %eax, %dx
  Code& out32(uint16_t port, uint32_t value) { return dx(port).bytes({0xb8}).u32(value).bytes({0xef}); }
  // mov $port, %dx; mov $value, %al; out %al, %dx
  Code& out8(uint16_t port, uint8_t value) { return dx(port).bytes({0xb0, value, 0xee}); }
  Code& append(const Code& more) {
    code_.insert(code_.end(), more.code_.begin(), more.code_.end());
    return *this;
  }
  [[nodiscard]] size_t size() const { return code_.size(); }
  Code& spin() { return bytes({0xeb, 0xfe}); } // jmp .
  Code& dx(uint16_t port) {
    return bytes({0x66, 0xba, static_cast<uint8_t>(port), static_cast<uint8_t>(port >> 8)});
  }
  Code& u32(uint32_t value) {
    for (unsigned i = 0; i < 4; ++i)
      code_.push_back(static_cast<uint8_t>(value >> (8 * i)));
    return *this;
  }
  operator const std::vector<uint8_t>&() const { return code_; } // NOLINT(google-explicit-constructor)

private:
  std::vector<uint8_t> code_;
};

// Reads of MMIO for ever. 0: xor %eax, %eax; 2: mov 0xc8000000, %eax, where all ones are; 7: jmp 0
inline Code mmio_reads() {
  return Code().bytes({0x31, 0xc0, 0xa1}).u32(0xc800'0000).bytes({0xeb, 0xf7});
}
inline constexpr uint64_t kAfterMmioRead = 7; // the offset of the jmp

} // namespace stopvisor::vmm::testing
