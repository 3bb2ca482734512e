// SPDX-License-Identifier: Apache-2.0
#include "vmm/boot/kernel_kind.h"

#include <array>
#include <cstring>
#include <string>

#include "vmm/boot/boot_params.h"
#include "vmm/boot/memory_layout.h"

namespace stopvisor::vmm {
namespace {

using std::string_view_literals::operator""sv;

struct Magic {
  size_t offset;
  std::string_view bytes;
  const char* reason;
};

// Linux Documentation: arch/arm64/booting.rst, riscv/boot-image-header.rst, arch/arm/boot/compressed/head.S; the
// formats' own specifications for the rest.
constexpr std::array<Magic, 11> kOthers{{
    {0x38, "ARM\x64"sv, "wrong architecture: an arm64 kernel, wanted x86-64"},
    {0x38, "RSC\x05"sv, "wrong architecture: a riscv kernel, wanted x86-64"},
    {0x24, "\x18\x28\x6f\x01"sv, "wrong architecture: a 32-bit arm kernel, wanted x86-64"},
    {0, "\x27\x05\x19\x56"sv, "not a kernel as it is: a U-Boot image"},
    {4, "zimg"sv, "not a kernel as it is: an EFI zboot image, which only firmware can start"},
    {0, "\x1f\x8b"sv, "not a kernel as it is: compressed by gzip; unpack it, or give the bzImage"},
    {0,
     "\xfd"
     "7zXZ\0"sv,
     "not a kernel as it is: compressed by xz; unpack it, or give the bzImage"},
    {0, "\x28\xb5\x2f\xfd"sv, "not a kernel as it is: compressed by zstd; unpack it, or give the bzImage"},
    {0, "\x02\x21\x4c\x18"sv, "not a kernel as it is: compressed by lz4; unpack it, or give the bzImage"},
    {0, "\x04\x22\x4d\x18"sv, "not a kernel as it is: compressed by lz4; unpack it, or give the bzImage"},
    {0, "BZh"sv, "not a kernel as it is: compressed by bzip2; unpack it, or give the bzImage"},
}};

bool has(std::span<const std::byte> file, size_t offset, std::string_view bytes) {
  return file.size() >= offset + bytes.size() && std::memcmp(file.data() + offset, bytes.data(), bytes.size()) == 0;
}

} // namespace

std::expected<KernelKind, Error> kernel_kind(std::span<const std::byte> file, std::string_view name) {
  if (has(file, 0,
          "\x7f"
          "ELF"sv))
    return KernelKind::kElf;
  if (has(file, kSetupMagicOffset, kSetupMagic))
    return KernelKind::kBzImage;
  for (const Magic& other : kOthers)
    if (has(file, other.offset, other.bytes))
      return refuse_kernel(name, other.reason);
  // A kernel with an EFI stub begins so, and what makes it one comes later.
  if (file.size() < kSetupMagicOffset + kSetupMagic.size() && has(file, 0, "MZ"sv))
    return refuse_kernel(name, "truncated: the setup header does not fit into the file");
  return refuse_kernel(name, "not a kernel: neither an ELF file nor a Linux bzImage");
}

} // namespace stopvisor::vmm
