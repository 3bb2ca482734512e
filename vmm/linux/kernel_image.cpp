// SPDX-License-Identifier: Apache-2.0
#include "vmm/linux/kernel_image.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "vmm/page_walk.h"

namespace stopvisor::vmm {
namespace {

constexpr uint64_t kCr0Paging = 1ULL << 31;
constexpr uint64_t kEferLma = 1ULL << 10;

// A range that is contiguous for the kernel; its pages need not be so in guest memory.
struct Run {
  uint64_t gva = 0;
  std::vector<std::span<const std::byte>> pieces;
  uint64_t size_bytes = 0;
};

// The pages of the image. Hostile tables may map any page any number of times: at most kMostBytes are taken.
std::expected<std::vector<Run>, std::string> find_runs(const GuestMemory& memory, const Registers& paging) {
  std::vector<Run> runs;
  uint64_t total = 0;
  bool in_run = false;
  for (uint64_t gva = kKernelImageStart; gva < kKernelImageEnd;) {
    const Block block = block_at(Gva{gva}, paging, memory);
    const uint64_t step = std::min(block.bytes - (gva & (block.bytes - 1)), kKernelImageEnd - gva);
    const auto bytes = block.page ? memory.range(block.page->gpa, step) : std::span<std::byte>();
    if (bytes.empty()) {
      in_run = false;
    } else {
      if (!in_run)
        runs.push_back({gva, {}, 0});
      in_run = true;
      runs.back().pieces.push_back(bytes);
      runs.back().size_bytes += step;
      total += step;
      if (total > KernelImage::kMostBytes)
        return std::unexpected("more than " + std::to_string(KernelImage::kMostBytes >> 20) +
                               " MiB are mapped where a kernel's image lies");
    }
    gva += step;
  }
  return runs;
}

} // namespace

std::expected<KernelImage, std::string> KernelImage::copy(const GuestMemory& memory, const Registers& paging) {
  if ((paging.cr0 & kCr0Paging) == 0 || (paging.efer & kEferLma) == 0)
    return std::unexpected("the vCPU is not in 64-bit mode");
  const auto runs = find_runs(memory, paging);
  if (!runs)
    return std::unexpected(runs.error());
  if (runs->empty())
    return std::unexpected("nothing is mapped where a kernel's image lies");
  KernelImage image;
  for (const Run& run : *runs) {
    Part part{run.gva, {}};
    part.bytes.reserve(run.size_bytes);
    for (const auto piece : run.pieces)
      part.bytes.insert(part.bytes.end(), piece.begin(), piece.end());
    image.parts_.push_back(std::move(part));
  }
  return image;
}

KernelImage KernelImage::of(std::vector<Part> parts) {
  KernelImage image;
  image.parts_ = std::move(parts);
  return image;
}

std::span<const std::byte> KernelImage::from(uint64_t gva) const noexcept {
  const auto after = std::ranges::upper_bound(parts_, gva, {}, &Part::gva);
  if (after == parts_.begin())
    return {};
  const Part& part = *std::prev(after);
  const uint64_t offset = gva - part.gva;
  return offset < part.bytes.size() ? std::span(part.bytes).subspan(offset) : std::span<const std::byte>();
}

std::span<const std::byte> KernelImage::range(uint64_t gva, uint64_t end) const noexcept {
  const auto bytes = from(gva);
  return end > gva && end - gva <= bytes.size() ? bytes.first(end - gva) : std::span<const std::byte>();
}

uint64_t KernelImage::size_bytes() const noexcept {
  return std::accumulate(parts_.begin(), parts_.end(), uint64_t{0},
                         [](uint64_t sum, const Part& part) { return sum + part.bytes.size(); });
}

} // namespace stopvisor::vmm
