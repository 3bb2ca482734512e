// SPDX-License-Identifier: Apache-2.0
// Reads a kernel, an initrd or any other input file whole, once.
//
// The bytes are copied rather than mapped: a file that someone shortens while it is mapped would end the
// VMM with SIGBUS, and one that someone rewrites would change between a check and its use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "vmm/error.h"

namespace stopvisor::vmm {

inline constexpr uint64_t kMaxFileBytes = 2ULL << 30;

class FileBytes {
public:
  FileBytes(std::unique_ptr<std::byte[]> bytes, size_t size) noexcept : bytes_(std::move(bytes)), size_(size) {}

  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return {bytes_.get(), size_}; }

private:
  std::unique_ptr<std::byte[]> bytes_;
  size_t size_;
};

// Reads the regular file at `path`. `operation` is what the user asked for, for the error: "load kernel".
// CONTEXT: any thread, blocks on the file system.
// RETURNS: kFailed where there is no such file, no right to read it, it is no regular file, is empty, is
// larger than `max_bytes`, does not fit into the host's memory, or shrank while it was read.
[[nodiscard]] std::expected<FileBytes, Error> read_file(std::string_view operation, const std::string& path,
                                                        uint64_t max_bytes = kMaxFileBytes);

} // namespace stopvisor::vmm
