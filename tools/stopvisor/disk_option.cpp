// SPDX-License-Identifier: Apache-2.0
#include "tools/stopvisor/disk_option.h"

#include <charconv>
#include <filesystem>
#include <string_view>
#include <system_error>

namespace stopvisor::tools {

namespace {

std::expected<std::string, vmm::Error> absolute_of(const std::string& text, std::string_view path) {
  std::error_code error;
  const auto absolute = std::filesystem::absolute(path, error);
  if (error)
    return std::unexpected(vmm::Error{"run: --disk", text, error.message(), vmm::Status::kFailed});
  return absolute.lexically_normal().string();
}

} // namespace

std::expected<vmm::DiskConfig, vmm::Error> parse_disk(const std::string& text) {
  constexpr std::string_view kReadOnly = ",ro";
  constexpr std::string_view kWritable = ",rw";
  std::string_view path = text;
  const bool read_only = path.ends_with(kReadOnly);
  if (read_only || path.ends_with(kWritable))
    path.remove_suffix(kReadOnly.size());
  if (path.empty())
    return std::unexpected(vmm::Error{"run: --disk", text, "must be FILE or FILE,ro", vmm::Status::kUsage});
  auto absolute = absolute_of(text, path);
  if (!absolute)
    return std::unexpected(absolute.error());
  return vmm::DiskConfig{*std::move(absolute), read_only};
}

std::expected<std::pair<size_t, std::string>, vmm::Error> parse_disk_place(const std::string& text) {
  size_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const std::string_view rest(end, text.data() + text.size());
  if (error != std::errc{} || rest.size() < 2 || !rest.starts_with('='))
    return std::unexpected(vmm::Error{
        "run: --disk", text, "must be N=FILE with --restore or --incoming: an image for disk N of the machine",
        vmm::Status::kUsage});
  auto absolute = absolute_of(text, rest.substr(1));
  if (!absolute)
    return std::unexpected(absolute.error());
  return std::pair(number, *std::move(absolute));
}

} // namespace stopvisor::tools
