// SPDX-License-Identifier: Apache-2.0
#include "vmm/tree_writer.h"

#include <libfdt.h>

namespace stopvisor::vmm {

const int TreeWriter::kNoSpace = -FDT_ERR_NOSPACE;

TreeWriter::TreeWriter(size_t size_bytes) : tree_(size_bytes) {
  keep(fdt_create(tree_.data(), static_cast<int>(tree_.size())));
  if (error_ == 0)
    keep(fdt_finish_reservemap(tree_.data()));
}

void TreeWriter::keep(int error) {
  if (error_ == 0 && error < 0)
    error_ = error;
}

TreeWriter::Node TreeWriter::node(const std::string& name) {
  if (error_ == 0)
    keep(fdt_begin_node(tree_.data(), name.c_str()));
  return Node(*this);
}

void TreeWriter::end_node() {
  if (error_ == 0)
    keep(fdt_end_node(tree_.data()));
}

void TreeWriter::property(const char* name, const void* value, size_t size_bytes) {
  if (error_ == 0)
    keep(fdt_property(tree_.data(), name, value, static_cast<int>(size_bytes)));
}

void TreeWriter::text(const char* name, const std::string& value) {
  property(name, value.c_str(), value.size() + 1);
}

void TreeWriter::flag(const char* name) {
  property(name, nullptr, 0);
}

void TreeWriter::number(const char* name, uint64_t value) {
  const fdt64_t big_endian = cpu_to_fdt64(value);
  property(name, &big_endian, sizeof(big_endian));
}

void TreeWriter::cells(const char* name, std::initializer_list<uint32_t> values) {
  std::vector<fdt32_t> big_endian;
  for (const uint32_t value : values)
    big_endian.push_back(cpu_to_fdt32(value));
  property(name, big_endian.data(), big_endian.size() * sizeof(fdt32_t));
}

void TreeWriter::range(const char* name, uint64_t base, uint64_t size) {
  cells(name, {static_cast<uint32_t>(base >> 32), static_cast<uint32_t>(base), static_cast<uint32_t>(size >> 32),
               static_cast<uint32_t>(size)});
}

std::expected<std::vector<std::byte>, int> TreeWriter::finish() {
  if (error_ == 0)
    keep(fdt_finish(tree_.data()));
  if (error_ != 0)
    return std::unexpected(error_);
  tree_.resize(fdt_totalsize(tree_.data()));
  return std::move(tree_);
}

std::string TreeWriter::text_of(int error) {
  return fdt_strerror(error);
}

} // namespace stopvisor::vmm
