// SPDX-License-Identifier: Apache-2.0
// Writes a flattened device tree through libfdt's sequential calls.
//
// The first failure sticks and the calls after it do nothing, so that the code which describes a machine
// reads like the tree; finish() tells.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <initializer_list>
#include <string>
#include <vector>

namespace stopvisor::vmm {

class TreeWriter {
public:
  static const int kNoSpace; // the libfdt error of a buffer that is too small

  explicit TreeWriter(size_t size_bytes);

  // Ends its node when it goes.
  class Node {
  public:
    explicit Node(TreeWriter& tree) : tree_(tree) {}
    ~Node() { tree_.end_node(); }
    Node(const Node&) = delete;
    Node& operator=(const Node&) = delete;

  private:
    TreeWriter& tree_;
  };

  [[nodiscard]] Node node(const std::string& name);
  void text(const char* name, const std::string& value);
  void flag(const char* name);
  void number(const char* name, uint64_t value); // two cells
  void cells(const char* name, std::initializer_list<uint32_t> values);
  void range(const char* name, uint64_t base, uint64_t size); // two cells each

  // RETURNS: the packed tree, or the first libfdt error (negative).
  [[nodiscard]] std::expected<std::vector<std::byte>, int> finish();
  [[nodiscard]] static std::string text_of(int error);

private:
  void end_node();
  void property(const char* name, const void* value, size_t size_bytes);
  void keep(int error);

  std::vector<std::byte> tree_;
  int error_ = 0;
};

} // namespace stopvisor::vmm
