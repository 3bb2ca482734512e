// SPDX-License-Identifier: Apache-2.0
// A folder of its own for each test, and a small machine with memory on both sides of the 32-bit hole.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "tools/snapshot/chain.h"
#include "tools/snapshot/writer.h"

namespace stopvisor::snapshot::testing {

inline constexpr uint64_t kLowBytes = 3 * kExtentBytes + 5 * kPageBytes; // no multiple of 2 MiB: a gap follows
inline constexpr uint64_t kHighBytes = 2 * kExtentBytes + 3 * kPageBytes;
inline constexpr uint64_t kHighGpa = 1ULL << 32;

struct Memory {
  std::vector<std::byte> low = std::vector<std::byte>(kLowBytes);
  std::vector<std::byte> high = std::vector<std::byte>(kHighBytes);
  std::vector<uint64_t> low_dirty = std::vector<uint64_t>(kLowBytes / kPageBytes / 64 + 1);
  std::vector<uint64_t> high_dirty = std::vector<uint64_t>(kHighBytes / kPageBytes / 64 + 1);

  [[nodiscard]] std::unique_ptr<MemorySource> source(bool incremental = false) const {
    return source_of({{0, kLowBytes, low.data(), low_dirty}, {kHighGpa, kHighBytes, high.data(), high_dirty}},
                     incremental);
  }
  // Fills some pages, zeroes some, and notes both as dirty.
  void scribble(std::mt19937_64& random, size_t pages) {
    for (size_t i = 0; i < pages; ++i) {
      const bool is_low = random() % 2 == 0;
      auto& bytes = is_low ? low : high;
      const size_t page = random() % (bytes.size() / kPageBytes);
      (is_low ? low_dirty : high_dirty)[page / 64] |= uint64_t{1} << (page % 64);
      std::byte* const to = bytes.data() + page * kPageBytes;
      if (random() % 4 == 0)
        std::memset(to, 0, kPageBytes);
      else
        for (size_t at = 0; at < kPageBytes; at += 8) {
          const uint64_t word = at < 512 ? random() : 0x1234567;
          std::memcpy(to + at, &word, 8);
        }
    }
  }
  void clean() {
    std::ranges::fill(low_dirty, 0);
    std::ranges::fill(high_dirty, 0);
  }
  [[nodiscard]] bool same(const Memory& other) const { return low == other.low && high == other.high; }
};

class SnapshotTest : public ::testing::Test {
protected:
  SnapshotTest() {
    std::string folder = (place() / "stopvisor-snapshot-XXXXXX").string();
    if (::mkdtemp(folder.data()) != nullptr)
      folder_ = folder;
    contents.vm = "vm1";
    contents.host = {{"cpu", "GenuineIntel"}, {"kernel", "6.1"}};
    contents.patches = {{"p", "1"}};
    contents.machine.resize(100, std::byte(0xd0));
    contents.state = {{1, 1, 0, {std::byte(1), std::byte(2), std::byte(3)}},
                      {1, 1, 1, {}},
                      {0x400, 2, 0, std::vector<std::byte>(64, std::byte(7))}};
    memory.scribble(random, 300);
  }
  ~SnapshotTest() override {
    std::error_code ignored;
    if (!folder_.empty())
      std::filesystem::remove_all(folder_, ignored);
  }

  // In memory where there is room: no test can cut the power, and waiting for a disk says nothing.
  [[nodiscard]] static std::filesystem::path place() {
    std::error_code none;
    const std::filesystem::path memory = "/dev/shm";
    const auto space = std::filesystem::space(memory, none);
    const bool roomy = !none && space.available >= uint64_t{256} << 20 && ::access(memory.c_str(), W_OK) == 0;
    return roomy ? memory : std::filesystem::temp_directory_path();
  }
  [[nodiscard]] std::string path(const std::string& name) const { return folder_ + "/" + name; }
  [[nodiscard]] static Key key(int number) {
    Hash bytes{};
    bytes.fill(std::byte(number));
    return Key(bytes);
  }
  // Makes a snapshot, with `parent` an incremental one, and takes all pages for clean from then on.
  Created make(const std::string& name, CreateOptions options = {}, const std::string& parent = {},
               const Created* of = nullptr) {
    if (of != nullptr)
      options.parent = Parent{path(parent), of->manifest.id, of->digest};
    const auto source = memory.source(of != nullptr);
    auto made = create(path(name), contents, *source, options);
    EXPECT_TRUE(made.has_value()) << made.error().message();
    memory.clean();
    return made ? *std::move(made) : Created{};
  }
  // A full one, "0", and incremental ones, "1" and so on; the memory of each is noted.
  std::vector<Memory> make_chain(int incrementals, const CreateOptions& options = {}, size_t pages = 40) {
    std::vector<Memory> history;
    Created last = make("0", options);
    history.push_back(memory);
    for (int i = 1; i <= incrementals; ++i) {
      memory.scribble(random, pages);
      last = make(std::to_string(i), options, std::to_string(i - 1), &last);
      history.push_back(memory);
    }
    return history;
  }
  // RETURNS: the error of reading everything, or an empty string and the memory.
  static std::string read_back(const std::string& directory, Memory& to, const OpenOptions& options = {}) {
    const auto chain = Chain::open(directory, options);
    if (!chain)
      return chain.error().message();
    to = {};
    const std::vector<std::span<std::byte>> places{to.low, to.high};
    if (const auto verified = chain->verify({}); !verified)
      return verified.error().message();
    const auto read = chain->read_memory(places, {});
    return read ? "" : read.error().message();
  }
  [[nodiscard]] std::vector<std::string> entries() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder_))
      names.push_back(entry.path().filename().string());
    std::ranges::sort(names);
    return names;
  }
  static std::string slurp(const std::string& file) {
    std::ifstream in(file, std::ios::binary | std::ios::ate);
    std::string text(static_cast<size_t>(std::max<std::streamoff>(in.tellg(), 0)), '\0');
    in.seekg(0);
    in.read(text.data(), static_cast<std::streamsize>(text.size()));
    return text;
  }
  static void spill(const std::string& file, const std::string& text) {
    std::ofstream(file, std::ios::binary | std::ios::trunc) << text;
  }

  // As somebody would who wants a change to pass, but has no key: all plain checksums are made anew.
  void reseal(const std::string& name, const std::string& manifest) {
    spill(path(name + "/manifest.json"), manifest);
    const std::string seal = slurp(path(name + "/seal"));
    std::string made = write_seal({.digest = digest_of(bytes_of(manifest)), .mac = std::nullopt});
    if (const size_t mac = seal.find("mac "); mac != std::string::npos)
      made += seal.substr(mac);
    spill(path(name + "/seal"), made);
  }

  std::mt19937_64 random{20261123};
  Contents contents;
  Memory memory;
  std::string folder_;
};

} // namespace stopvisor::snapshot::testing
