// SPDX-License-Identifier: Apache-2.0
#include "vmm/guest_memory.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

namespace stopvisor::vmm {
namespace {

// Above what any x86 CPU addresses (52 bits), and far below where the sums here could wrap.
constexpr uint64_t kMaxMemoryBytes = 1ULL << 46;
constexpr std::string_view kOperation = "guest memory";

Error failed(std::string reason, Status status = Status::kFailed) {
  return Error{std::string(kOperation), "", std::move(reason), status};
}

Error host_refused(const char* what, int error_number) {
  Error error = system_error(kOperation, "", error_number);
  error.reason = std::string(what) + ": " + error.reason;
  return error;
}

std::expected<void, Error> check_size(uint64_t bytes, MemoryBacking backing) {
  const uint64_t unit = backing == MemoryBacking::kHugetlb ? kHugePageBytes : kPageBytes;
  if (bytes == 0)
    return std::unexpected(failed("a machine needs more than 0 bytes", Status::kUsage));
  if (bytes % unit != 0)
    return std::unexpected(failed(std::to_string(bytes) + " bytes is not a multiple of " +
                                      (unit == kPageBytes ? "4 KiB" : "2 MiB, the size of a huge page"),
                                  Status::kUsage));
  if (bytes > kMaxMemoryBytes)
    return std::unexpected(failed(std::to_string(bytes) + " bytes is more than 64 TiB", Status::kUsage));
  return {};
}

// A memfd of `bytes` that cannot shrink: a mapping of it can then never raise SIGBUS.
std::expected<UniqueFd, Error> make_memfd(uint64_t bytes, MemoryBacking backing) {
  unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  if (backing == MemoryBacking::kHugetlb)
    flags |= MFD_HUGETLB | MFD_HUGE_2MB;
  UniqueFd fd(::memfd_create("stopvisor-memory", flags));
  if (!fd)
    return std::unexpected(host_refused("cannot create a memfd", errno));
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0)
    return std::unexpected(host_refused("cannot size the memfd", errno));
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
    return std::unexpected(host_refused("cannot seal the memfd", errno));
  return fd;
}

// Address space for `bytes`, 2 MiB aligned so that huge pages of host and guest coincide; null on failure.
std::byte* reserve(uint64_t bytes) {
  const uint64_t with_slack = bytes + kHugePageBytes;
  void* const raw = ::mmap(nullptr, with_slack, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED)
    return nullptr;
  auto* const start = static_cast<std::byte*>(raw);
  const uint64_t head = -reinterpret_cast<uintptr_t>(start) % kHugePageBytes;
  const uint64_t used = (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  if (head != 0)
    ::munmap(start, head);
  if (with_slack - head - used != 0)
    ::munmap(start + head + used, with_slack - head - used);
  return start + head;
}

} // namespace

const char* name_of(MemoryBacking backing) noexcept {
  switch (backing) {
  case MemoryBacking::kAnonymous:
    return "anon";
  case MemoryBacking::kMemfd:
    return "memfd";
  case MemoryBacking::kHugetlb:
    return "hugetlb";
  }
  return "unknown";
}

std::optional<MemoryBacking> memory_backing_named(std::string_view name) noexcept {
  using enum MemoryBacking;
  for (const MemoryBacking backing : {kAnonymous, kMemfd, kHugetlb})
    if (name == name_of(backing))
      return backing;
  return std::nullopt;
}

std::expected<GuestMemory, Error> GuestMemory::create(uint64_t size_bytes, MemoryBacking backing) {
  if (auto checked = check_size(size_bytes, backing); !checked)
    return std::unexpected(checked.error());
  GuestMemory memory;
  memory.size_bytes_ = size_bytes;
  memory.backing_ = backing;
  if (backing != MemoryBacking::kAnonymous) {
    auto fd = make_memfd(size_bytes, backing);
    if (!fd)
      return std::unexpected(fd.error());
    memory.fd_ = std::move(*fd);
  }
  if (auto mapped = memory.map(); !mapped)
    return std::unexpected(mapped.error());
  const uint64_t low = std::min(size_bytes, kHoleStart);
  memory.slots_.push_back({Gpa{0}, low, memory.mapping_});
  if (size_bytes > low)
    memory.slots_.push_back({Gpa{kHoleEnd}, size_bytes - low, memory.mapping_ + low});
  return memory;
}

std::expected<void, Error> GuestMemory::map() {
  std::byte* const start = reserve(size_bytes_);
  if (start == nullptr)
    return std::unexpected(
        host_refused(("cannot map " + std::to_string(size_bytes_ >> 20) + " MiB").c_str(), errno));
  const int flags = fd_ ? MAP_SHARED | MAP_FIXED : MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  if (::mmap(start, size_bytes_, PROT_READ | PROT_WRITE, flags, fd_.get(), 0) == MAP_FAILED) {
    const int error_number = errno;
    ::munmap(start, size_bytes_);
    if (backing_ == MemoryBacking::kHugetlb && error_number == ENOMEM)
      return std::unexpected(failed("the host's pool has fewer than " +
                                    std::to_string(size_bytes_ / kHugePageBytes) +
                                    " free huge pages of 2 MiB (see /proc/sys/vm/nr_hugepages)"));
    return std::unexpected(
        host_refused(("cannot map " + std::to_string(size_bytes_ >> 20) + " MiB").c_str(), error_number));
  }
  mapping_ = start;
  if (backing_ != MemoryBacking::kHugetlb) // a wish: a host without transparent huge pages still works
    (void)::madvise(mapping_, size_bytes_, MADV_HUGEPAGE);
  return {};
}

GuestMemory::~GuestMemory() {
  if (mapping_ != nullptr)
    ::munmap(mapping_, size_bytes_);
}

GuestMemory::GuestMemory(GuestMemory&& other) noexcept
    : size_bytes_(std::exchange(other.size_bytes_, 0)), backing_(other.backing_),
      mapping_(std::exchange(other.mapping_, nullptr)), maps_file_(std::exchange(other.maps_file_, false)),
      fd_(std::move(other.fd_)), slots_(std::exchange(other.slots_, {})) {}

std::span<std::byte> GuestMemory::range(Gpa gpa, uint64_t length) const noexcept {
  if (length == 0)
    return {};
  for (const MemorySlot& slot : slots_) {
    if (gpa.value < slot.base.value)
      continue;
    const uint64_t offset = gpa.value - slot.base.value;
    if (offset < slot.size_bytes && length <= slot.size_bytes - offset)
      return {slot.host + offset, length};
  }
  return {};
}

bool GuestMemory::read(Gpa gpa, std::span<std::byte> to) const noexcept {
  const auto from = range(gpa, to.size());
  if (from.empty())
    return false;
  std::memcpy(to.data(), from.data(), to.size());
  return true;
}

bool GuestMemory::write(Gpa gpa, std::span<const std::byte> from) const noexcept {
  const auto to = range(gpa, from.size());
  if (to.empty())
    return false;
  std::memcpy(to.data(), from.data(), from.size());
  return true;
}

std::expected<void, Error> GuestMemory::map_file(int fd, std::span<const uint64_t> offsets) {
  if (backing_ != MemoryBacking::kAnonymous)
    return std::unexpected(
        failed(std::string("its backing is ") + name_of(backing_) + ", not a file", Status::kRefused));
  maps_file_ = true;
  for (size_t i = 0; i < slots_.size(); ++i)
    if (::mmap(slots_[i].host, slots_[i].size_bytes, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED, fd, static_cast<off_t>(offsets[i])) == MAP_FAILED)
      return std::unexpected(host_refused("cannot map the file", errno));
  return {};
}

bool GuestMemory::map_anonymous() const noexcept {
  if (::mmap(mapping_, size_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
             -1, 0) == MAP_FAILED)
    return false;
  (void)::madvise(mapping_, size_bytes_, MADV_HUGEPAGE); // a wish
  return true;
}

std::expected<void, Error> GuestMemory::clear() noexcept {
  if (maps_file_) { // whose content would come back
    if (!map_anonymous())
      return std::unexpected(host_refused("cannot give pages back", errno));
    maps_file_ = false;
    return {};
  }
  // Private pages are dropped from the mapping; those of a memfd belong to the file and are punched out of it.
  const int result =
      fd_ ? ::fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(size_bytes_))
          : ::madvise(mapping_, size_bytes_, MADV_DONTNEED);
  if (result != 0)
    return std::unexpected(host_refused("cannot give pages back", errno));
  return {};
}

} // namespace stopvisor::vmm
