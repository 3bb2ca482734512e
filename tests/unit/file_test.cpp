// SPDX-License-Identifier: Apache-2.0
// Reading input files: what is read, and the name of each refusal.
#include "vmm/boot/file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

namespace stopvisor::vmm {
namespace {

class ReadFile : public ::testing::Test {
protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "stopvisor-file-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  [[nodiscard]] std::string path(const char* name) const { return (folder_ / name).string(); }
  static std::string refusal(const std::string& path, uint64_t max_bytes = kMaxFileBytes) {
    const auto file = read_file("load kernel", path, max_bytes);
    return file ? "" : file.error().message();
  }

  std::filesystem::path folder_;
};

TEST_F(ReadFile, GivesTheBytes) {
  std::ofstream(path("f")) << "hello";
  const auto file = read_file("load kernel", path("f"));
  ASSERT_TRUE(file) << file.error().message();
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size()), "hello");
}

TEST_F(ReadFile, NamesWhatIsWrong) {
  std::ofstream(path("empty")).flush();
  std::ofstream(path("large")) << "12345";
  ASSERT_EQ(::mkfifo(path("fifo").c_str(), 0600), 0);

  EXPECT_EQ(refusal(path("none")), "load kernel: " + path("none") + ": No such file or directory");
  EXPECT_EQ(refusal(folder_.string()), "load kernel: " + folder_.string() + ": is a directory");
  EXPECT_EQ(refusal(path("empty")), "load kernel: " + path("empty") + ": is empty");
  EXPECT_EQ(refusal(path("fifo")), "load kernel: " + path("fifo") + ": is not a regular file");
  EXPECT_EQ(refusal(path("large"), 4),
            "load kernel: " + path("large") + ": is too large: 5 bytes, at most 4 are taken");
}

} // namespace
} // namespace stopvisor::vmm
