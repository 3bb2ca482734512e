// SPDX-License-Identifier: Apache-2.0
// Walks through a flattened device tree that nobody vouches for, through libfdt.
//
// A tree is checked as a whole first, so that what follows cannot leave its bytes; then each node is handed out
// with its path and its properties, none of them twice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "vmm/error.h"

namespace stopvisor::vmm {

class TreeNode {
public:
  struct Property {
    std::string_view name;
    std::span<const std::byte> value;
  };

  TreeNode(std::string path, std::vector<Property> properties)
      : path_(std::move(path)), properties_(std::move(properties)) {}

  [[nodiscard]] const std::string& path() const noexcept { return path_; } // "/cpus/cpu@0"
  [[nodiscard]] const std::vector<Property>& properties() const noexcept { return properties_; }
  [[nodiscard]] const Property* find(std::string_view name) const noexcept;

  // A property's value. RETURNS: nothing where there is no such property; kUsage where it is no text (printable or
  // not, but ended by its only NUL), or not `count` cells.
  [[nodiscard]] std::expected<std::optional<std::string>, Error> text(std::string_view name) const;
  [[nodiscard]] std::expected<std::optional<std::vector<uint32_t>>, Error> cells(std::string_view name,
                                                                                 size_t count) const;
  // The texts of a list; empty where there is none, or it is no list of texts.
  [[nodiscard]] std::vector<std::string> texts(std::string_view name) const;

  // An error about this node, or one of its properties.
  [[nodiscard]] Error refuse(std::string_view property, std::string reason) const;

private:
  std::string path_;
  std::vector<Property> properties_;
};

// Hands every node of `tree` to `visit`, in their order, until that returns an error.
// RETURNS: that error; kUsage where it is no whole tree, is nested deeper than 4 nodes, or has a node or a property
// twice. CONTEXT: `tree` is aligned to 8; views last as long as it.
[[nodiscard]] std::expected<void, Error>
for_each_node(std::span<const std::byte> tree,
              const std::function<std::expected<void, Error>(const TreeNode&)>& visit);

} // namespace stopvisor::vmm
