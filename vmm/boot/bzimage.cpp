// SPDX-License-Identifier: Apache-2.0
#include "vmm/boot/bzimage.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <utility>

#include "vmm/boot/boot_params.h"
#include "vmm/boot/memory_layout.h"
#include "vmm/units.h"

namespace stopvisor::vmm {
namespace {

constexpr uint64_t kParagraphBytes = 16;
constexpr uint64_t kMaxPreferredGpa = 1ULL << 62; // beyond any guest's memory, and far from an overflow
constexpr uint32_t kMaxAlignment = 1U << 30;

std::string protocol_name(uint16_t version) {
  const std::string minor = std::to_string(version & 0xff);
  return std::to_string(version >> 8) + (minor.size() < 2 ? ".0" : ".") + minor;
}

// The part of the header that every bzImage has, or why this is none that can be entered in 64-bit mode.
std::string unfit(const SetupHeader& header) {
  if (header.boot_flag != kBootFlag)
    return "malformed: no boot flag 0xaa55";
  if (header.version < kFirst64BitProtocol)
    return "32-bit only: boot protocol " + protocol_name(header.version) + ", a 64-bit entry needs 2.12";
  if ((header.xloadflags & kXloadKernel64) == 0)
    return "32-bit only: it has no 64-bit entry (XLF_KERNEL_64)";
  if ((header.loadflags & kLoadedHigh) == 0)
    return "not a bzImage: it wants to be loaded below 1 MiB";
  return {};
}

// What the header says of memory, where it makes no sense.
std::string senseless(const SetupHeader& header, uint64_t code_bytes) {
  if (header.relocatable_kernel != 0 &&
      (!std::has_single_bit(header.kernel_alignment) || header.kernel_alignment > kMaxAlignment))
    return "malformed: kernel_alignment " + to_hex(header.kernel_alignment);
  if (header.pref_address < kLowReservedEnd || header.pref_address > kMaxPreferredGpa)
    return "malformed: pref_address " + to_hex(header.pref_address);
  if (header.init_size < code_bytes)
    return "malformed: init_size " + to_hex(header.init_size) + " is less than its " + to_hex(code_bytes) +
           " bytes of code";
  if (header.payload_offset > code_bytes || header.payload_length > code_bytes - header.payload_offset)
    return "malformed: its payload ends past its code";
  if (header.cmdline_size == 0)
    return "malformed: cmdline_size 0";
  return {};
}

} // namespace

std::expected<BzImage, Error> read_bzimage(std::span<const std::byte> file, std::string_view name) {
  SetupHeader header{};
  if (file.size() < kSetupHeaderMinEnd) // no kernel is that small, whatever its protocol
    return refuse_kernel(name, "truncated: the setup header does not fit into the file");
  if (std::memcmp(file.data() + kSetupMagicOffset, kSetupMagic.data(), kSetupMagic.size()) != 0)
    return refuse_kernel(name, "not a bzImage: no \"HdrS\"");
  std::memcpy(&header, file.data() + kSetupHeaderOffset, std::min(sizeof header, file.size() - kSetupHeaderOffset));
  if (std::string reason = unfit(header); !reason.empty())
    return refuse_kernel(name, std::move(reason));

  const size_t header_end = kSetupMagicOffset + std::to_integer<size_t>(file[kSetupLengthOffset]);
  if (header_end < kSetupHeaderMinEnd || header_end > kSetupHeaderEnd)
    return refuse_kernel(name, "malformed: the setup header ends at " + to_hex(header_end));
  const size_t setup_bytes =
      (1 + (header.setup_sects == 0 ? kMinSetupSectors : size_t{header.setup_sects})) * kSectorBytes;
  if (file.size() < std::max(setup_bytes, header_end))
    return refuse_kernel(name, "truncated: the setup code does not fit into the file");
  if (header_end > setup_bytes)
    return refuse_kernel(name, "malformed: the setup header ends past the setup code");

  const uint64_t wanted = header.syssize * kParagraphBytes; // a signature may follow
  const auto rest = file.subspan(setup_bytes);
  if (rest.size() + kParagraphBytes <= wanted) // the size is rounded up
    return refuse_kernel(name, "truncated: " + std::to_string(rest.size()) + " of " + std::to_string(wanted) +
                                   " bytes of its code are there");
  const auto code = rest.first(std::min<uint64_t>(rest.size(), wanted));
  if (code.size() <= kEntry64Offset)
    return refuse_kernel(name, "malformed: its code ends before the 64-bit entry");
  if (std::string reason = senseless(header, code.size()); !reason.empty())
    return refuse_kernel(name, std::move(reason));

  BzImage image;
  image.setup_header = file.subspan(kSetupHeaderOffset, header_end - kSetupHeaderOffset);
  image.code = code;
  image.relocatable = header.relocatable_kernel != 0;
  image.preferred_gpa = header.pref_address;
  image.alignment = image.relocatable ? header.kernel_alignment : 1;
  image.memory_bytes = header.init_size;
  image.max_cmdline_bytes = header.cmdline_size;
  image.highest_initrd_byte = header.initrd_addr_max;
  return image;
}

} // namespace stopvisor::vmm
