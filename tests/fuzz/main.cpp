// SPDX-License-Identifier: Apache-2.0
// libFuzzer's entry points, the same for each fuzzer: it begins with the seeds, in a folder of their own.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "tests/fuzz/fuzzer.h"

namespace stopvisor::fuzz {
namespace {

std::string g_folder; // of the seeds

bool write_seeds() {
  g_folder = (std::filesystem::temp_directory_path() / "stopvisor-seeds-XXXXXX").string();
  if (::mkdtemp(g_folder.data()) == nullptr)
    return false;
  if (std::atexit([] {
        std::error_code ignored;
        std::filesystem::remove_all(g_folder, ignored);
      }) != 0)
    return false;
  size_t number = 0;
  for (const Bytes& seed : seeds()) {
    try_one(seed); // a crash here needs no fuzzer
    std::ofstream file(g_folder + "/" + std::to_string(number++), std::ios::binary);
    file.write(reinterpret_cast<const char*>(seed.data()), static_cast<std::streamsize>(seed.size()));
    if (!file.flush())
      return false;
  }
  return true;
}

} // namespace

void must(bool good, const char* what) {
  if (good)
    return;
  std::fprintf(stderr, "taken, and wrong: %s\n", what);
  std::abort();
}

} // namespace stopvisor::fuzz

// NOLINTBEGIN(readability-identifier-naming): libFuzzer calls these
extern "C" int LLVMFuzzerInitialize(int* count, char*** words);
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

extern "C" int LLVMFuzzerInitialize(int* count, char*** words) {
  using namespace stopvisor::fuzz;
  if (!write_seeds()) {
    std::perror("seeds");
    std::exit(1); // NOLINT(concurrency-mt-unsafe): there is one thread
  }
  static std::vector<char*> more(*words, *words + *count);
  more.push_back(g_folder.data());
  *count = static_cast<int>(more.size());
  more.push_back(nullptr);
  *words = more.data();
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  stopvisor::fuzz::try_one(std::as_bytes(std::span(data, size)));
  return 0;
}
// NOLINTEND(readability-identifier-naming)
