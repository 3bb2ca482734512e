// SPDX-License-Identifier: Apache-2.0
#include "vmm/tree_reader.h"

#include <libfdt.h>

#include <algorithm>
#include <cstring>
#include <set>

namespace stopvisor::vmm {
namespace {

constexpr int kMaxDepth = 4; // ours has 2
constexpr size_t kShownBytes = 80;

// What a file says may be shown to a terminal.
std::string printable(std::string_view text) {
  std::string shown;
  for (const char c : text.substr(0, kShownBytes))
    shown += c > ' ' && c < 0x7f ? c : '?';
  return shown + (text.size() > kShownBytes ? "..." : "");
}

Error broken(std::string reason) {
  return {"machine description", "", std::move(reason), Status::kUsage};
}

// The properties of the node at `offset`. CONTEXT: the tree was checked.
std::expected<TreeNode, Error> node_at(const void* fdt, int offset, std::string path) {
  std::vector<TreeNode::Property> properties;
  std::set<std::string_view> names;
  int property = 0;
  fdt_for_each_property_offset(property, fdt, offset) {
    const char* name = nullptr;
    int length = 0;
    const void* const value = fdt_getprop_by_offset(fdt, property, &name, &length);
    if (value == nullptr || name == nullptr || length < 0)
      return std::unexpected(broken(std::string("libfdt: ") + fdt_strerror(length)));
    if (!names.insert(name).second)
      return std::unexpected(TreeNode(std::move(path), {}).refuse(name, "is there twice"));
    properties.push_back({name, {static_cast<const std::byte*>(value), static_cast<size_t>(length)}});
  }
  return TreeNode(std::move(path), std::move(properties));
}

} // namespace

const TreeNode::Property* TreeNode::find(std::string_view name) const noexcept {
  const auto found = std::ranges::find(properties_, name, &Property::name);
  return found == properties_.end() ? nullptr : &*found;
}

Error TreeNode::refuse(std::string_view property, std::string reason) const {
  return {"machine description", printable(path_) + (property.empty() ? "" : ": " + printable(property)),
          std::move(reason), Status::kUsage};
}

std::expected<std::optional<std::string>, Error> TreeNode::text(std::string_view name) const {
  const Property* const property = find(name);
  if (property == nullptr)
    return std::nullopt;
  const auto end = std::ranges::find(property->value, std::byte{0});
  if (end == property->value.end() || end + 1 != property->value.end())
    return std::unexpected(refuse(name, "must be one text"));
  return std::string(reinterpret_cast<const char*>(property->value.data()), property->value.size() - 1);
}

std::expected<std::optional<std::vector<uint32_t>>, Error> TreeNode::cells(std::string_view name,
                                                                           size_t count) const {
  const Property* const property = find(name);
  if (property == nullptr)
    return std::nullopt;
  if (property->value.size() != count * sizeof(fdt32_t))
    return std::unexpected(
        refuse(name, "must be " + std::to_string(count) + (count == 1 ? " cell" : " cells") + " of 32 bits"));
  std::vector<uint32_t> cells(count);
  for (size_t i = 0; i < count; ++i) {
    fdt32_t big_endian = 0;
    std::memcpy(&big_endian, property->value.data() + i * sizeof big_endian, sizeof big_endian);
    cells[i] = fdt32_to_cpu(big_endian);
  }
  return cells;
}

std::vector<std::string> TreeNode::texts(std::string_view name) const {
  const Property* const property = find(name);
  std::vector<std::string> list;
  if (property == nullptr || property->value.empty() || property->value.back() != std::byte{0})
    return list;
  for (std::string_view rest(reinterpret_cast<const char*>(property->value.data()), property->value.size());
       !rest.empty(); rest.remove_prefix(list.back().size() + 1))
    list.emplace_back(rest.substr(0, rest.find('\0')));
  return list;
}

std::expected<void, Error> for_each_node(std::span<const std::byte> tree,
                                         const std::function<std::expected<void, Error>(const TreeNode&)>& visit) {
  const void* const fdt = tree.data();
  if (const int error = fdt_check_full(fdt, tree.size()); error != 0)
    return std::unexpected(broken(std::string("not a whole flattened device tree: ") + fdt_strerror(error)));
  std::vector<std::string> names; // of the nodes above and including this one; the root's is empty
  std::set<std::string> seen;
  int depth = 0;
  for (int node = 0; node >= 0 && depth >= 0; node = fdt_next_node(fdt, node, &depth)) {
    int length = 0;
    const char* const name = fdt_get_name(fdt, node, &length);
    if (name == nullptr)
      return std::unexpected(broken(std::string("libfdt: ") + fdt_strerror(length)));
    if (depth > kMaxDepth)
      return std::unexpected(broken("nested deeper than " + std::to_string(kMaxDepth) + " nodes"));
    names.resize(static_cast<size_t>(depth));
    names.emplace_back(name, static_cast<size_t>(length));
    std::string path;
    for (size_t i = 1; i < names.size(); ++i)
      path += "/" + names[i];
    auto made = node_at(fdt, node, path.empty() ? "/" : path);
    if (!made)
      return std::unexpected(made.error());
    if (!seen.insert(made->path()).second)
      return std::unexpected(made->refuse("", "is there twice"));
    if (auto fine = visit(*made); !fine)
      return fine;
  }
  return {};
}

} // namespace stopvisor::vmm
