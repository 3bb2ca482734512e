// SPDX-License-Identifier: Apache-2.0
// Builds small bzImage files for the tests: right ones, and ones wrong in exactly one place.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "vmm/boot/boot_params.h"

namespace stopvisor::vmm::testing {

// The setup code's sectors with the header, then the code.
class BzImageBuilder {
public:
  BzImageBuilder() {
    header.setup_sects = 4;
    header.boot_flag = kBootFlag;
    header.jump = static_cast<uint16_t>(0xeb | (kSetupHeaderOffset + sizeof header - kSetupMagicOffset) << 8);
    std::memcpy(&header.header, kSetupMagic.data(), kSetupMagic.size());
    header.version = 0x020f;
    header.loadflags = kLoadedHigh;
    header.initrd_addr_max = 0x7fff'ffff;
    header.kernel_alignment = 0x20'0000;
    header.relocatable_kernel = 1;
    header.xloadflags = kXloadKernel64;
    header.cmdline_size = 2047;
    header.pref_address = 0x100'0000;
    header.init_size = 0x10'0000;
  }

  // Sets the code and, in the header, its size.
  BzImageBuilder& code(std::vector<std::byte> bytes) {
    code_ = std::move(bytes);
    code_.resize((code_.size() + 15) / 16 * 16);
    header.syssize = static_cast<uint32_t>(code_.size() / 16);
    return *this;
  }

  [[nodiscard]] std::vector<std::byte> build() const {
    std::vector<std::byte> file((1 + size_t{header.setup_sects}) * kSectorBytes);
    std::memcpy(file.data() + kSetupHeaderOffset, &header,
                std::min(sizeof header, file.size() - kSetupHeaderOffset));
    file.insert(file.end(), code_.begin(), code_.end());
    return file;
  }

  SetupHeader header{};

private:
  std::vector<std::byte> code_;
};

// Of 4 KiB: 0x90 up to the 64-bit entry, then 0x91.
inline BzImageBuilder small_bzimage() {
  std::vector<std::byte> code(4096, std::byte{0x91});
  std::fill_n(code.begin(), kEntry64Offset, std::byte{0x90});
  BzImageBuilder builder;
  builder.code(std::move(code));
  return builder;
}

} // namespace stopvisor::vmm::testing
