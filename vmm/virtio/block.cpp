// SPDX-License-Identifier: Apache-2.0
#include "vmm/virtio/block.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

namespace stopvisor::vmm::virtio {
namespace {

// virtio 1.2, 5.2.3
enum Feature : uint64_t {
  kSizeMax = 1U << 1,
  kSegMax = 1U << 2,
  kReadOnly = 1U << 5,
  kBlockSize = 1U << 6,
  kFlush = 1U << 9,
  kDiscard = 1U << 13,
  kWriteZeroes = 1U << 14,
};
// 5.2.6
enum Type : uint32_t { kIn = 0, kOut = 1, kFlushIt = 4, kGetId = 8, kDiscardIt = 11, kWriteZeroesIt = 13 };
enum Result : uint8_t { kOk = 0, kIoError = 1, kUnsupported = 2 };

constexpr std::array<uint16_t, 1> kQueueSizes{256};
constexpr uint64_t kHeaderBytes = 16; // type, reserved, sector
constexpr uint64_t kRangeBytes = 16;  // sector, number of sectors, flags
constexpr uint64_t kIdBytes = 20;
constexpr uint32_t kUnmap = 1; // in a range's flags

// A request is done in one piece, and a stop waits for its end: so it is limited. Four MiB are about a millisecond
// where the host has them in memory. More than these drivers do not send; what sends more gets an error.
constexpr uint32_t kMaxSegmentBytes = 32 << 10;
constexpr uint32_t kMaxSegments = 128;
constexpr uint64_t kMaxDataBytes = uint64_t{kMaxSegmentBytes} * kMaxSegments;
// The same for zeros that have to be written, as a file system may not know holes. A discard writes nothing.
constexpr uint32_t kMaxZeroSectors = kMaxDataBytes / kSectorBytes;
constexpr uint32_t kMaxDiscardSectors = 1U << 21; // 1 GiB
constexpr uint32_t kMaxRanges = 1;

template <class Number>
Number number_at(std::span<const std::byte> bytes, size_t at) {
  Number number;
  std::memcpy(&number, bytes.data() + at, sizeof number);
  return number;
}

// What fallocate() says where it cannot do it here, or not for this range.
bool not_here(int error_number) {
  return error_number == EOPNOTSUPP || error_number == EINVAL || error_number == EINTR;
}

// preadv() or pwritev(), as often as it takes. RETURNS: how many bytes it did before an error or the end of the
// file.
template <class Call>
uint64_t all_of(std::span<const iovec> buffers, uint64_t bytes, uint64_t offset, Call call) {
  uint64_t done = 0;
  Parts parts;
  while (done < bytes) {
    const auto left = cut(buffers, done, bytes - done, parts);
    const ssize_t got = call(left.data(), static_cast<int>(left.size()), static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR)
      continue;
    if (got <= 0)
      break;
    done += static_cast<uint64_t>(got);
  }
  return done;
}

} // namespace

Block::Block(BlockImage image, bool read_only, std::string name)
    : image_(std::move(image)), read_only_(read_only), name_(std::move(name)) {
  write_config();
}

uint64_t Block::features() const noexcept {
  return kSizeMax | kSegMax | kBlockSize | (read_only_ ? kReadOnly : kFlush | kDiscard | kWriteZeroes);
}

std::span<const uint16_t> Block::queue_sizes() const noexcept {
  return kQueueSizes;
}

void Block::write_config() noexcept {
  const auto put = [this](size_t at, auto number) { std::memcpy(config_.data() + at, &number, sizeof number); };
  put(0, image_.sectors);
  put(8, kMaxSegmentBytes);
  put(12, kMaxSegments);
  put(20, static_cast<uint32_t>(kSectorBytes));
  if (read_only_)
    return;
  put(36, kMaxDiscardSectors);
  put(40, kMaxRanges);
  put(44, uint32_t{1}); // discards may begin anywhere
  put(48, kMaxZeroSectors);
  put(52, kMaxRanges);
  put(56, uint8_t{1}); // writing zeros may unmap
}

void Block::save_state(StateWriter& to) const {
  put_fields(to, image_.sectors, read_only_);
}

void Block::restore_state(StateReader& from) {
  uint64_t sectors = 0;
  bool read_only = false;
  get_fields(from, sectors, read_only);
  from.refuse_unless(sectors == image_.sectors, "the disk is not as large as it was");
  from.refuse_unless(read_only == read_only_, "the disk was read-only, or is now");
}

bool Block::holds(uint64_t sector, uint64_t bytes) const noexcept {
  return sector <= image_.sectors && bytes / kSectorBytes <= image_.sectors - sector;
}

// Header, data, and a byte for the status at the end of what we may write (5.2.6). A request without room for the
// status cannot be answered; it is given back as it is.
uint32_t Block::handle(const Chain& request) noexcept {
  std::array<std::byte, kHeaderBytes> header{};
  if (request.writable_bytes() == 0)
    return 0;
  Answer answer{kIoError, 0};
  const bool whole = request.read(0, header);
  const auto type = number_at<uint32_t>(header, 0);
  if (whole)
    answer = serve_type(request, type, number_at<uint64_t>(header, 8));
  count(request, type, answer);
  const std::byte status{answer.status};
  (void)request.write(request.writable_bytes() - 1, {&status, 1}); // there is room
  return fill_gap(request, answer.filled);
}

void Block::count(const Chain& request, uint32_t type, Answer answer) noexcept {
  if (answer.status != kOk) {
    errors_.add(1);
  } else if (type == kIn) {
    reads_.add(1);
    bytes_read_.add(answer.filled);
  } else if (type == kOut) {
    writes_.add(1);
    bytes_written_.add(request.readable_bytes() - kHeaderBytes);
  } else if (type == kFlushIt) {
    flushes_.add(1);
  } else if (type == kDiscardIt) {
    discards_.add(1);
  } else if (type == kWriteZeroesIt) {
    zeroings_.add(1);
  }
}

std::vector<DeviceCounter> Block::counters() const {
  return {{"reads", reads_.value()},       {"bytes_read", bytes_read_.value()},
          {"writes", writes_.value()},     {"bytes_written", bytes_written_.value()},
          {"flushes", flushes_.value()},   {"discards", discards_.value()},
          {"zeroings", zeroings_.value()}, {"errors", errors_.value()}};
}

// What a driver may look at begins at the first byte and has no gaps (2.7.8.2): so that it may look at the status,
// the data that we do not have are zeros. RETURNS: how far that is.
uint32_t Block::fill_gap(const Chain& request, uint32_t filled) noexcept {
  const uint64_t gap = request.writable_bytes() - 1 - filled;
  if (gap > kMaxDataBytes) // nobody's driver
    return 0;
  Parts parts;
  for (const iovec& part : cut(request.writable(), filled, gap, parts))
    std::memset(part.iov_base, 0, part.iov_len);
  return static_cast<uint32_t>(request.writable_bytes());
}

Block::Answer Block::serve_type(const Chain& request, uint32_t type, uint64_t sector) const noexcept {
  switch (type) {
  case kIn:
    return read(request, sector);
  case kOut:
    return {write(request, sector), 0};
  case kFlushIt:
    return {flush(), 0};
  case kGetId:
    return identify(request);
  case kDiscardIt:
  case kWriteZeroesIt:
    return {change_range(request, type), 0};
  default:
    return {kUnsupported, 0};
  }
}

Block::Answer Block::read(const Chain& request, uint64_t sector) const noexcept {
  const uint64_t bytes = request.writable_bytes() - 1;
  if (bytes % kSectorBytes != 0 || bytes > kMaxDataBytes || !holds(sector, bytes))
    return {kIoError, 0};
  const uint64_t got = all_of(request.writable(), bytes, sector * kSectorBytes,
                              [fd = image_.fd.get()](auto... arguments) { return ::preadv(fd, arguments...); });
  // A file that somebody has made shorter reads short: an error, as of a disk that is damaged there.
  return {got == bytes ? kOk : kIoError, static_cast<uint32_t>(got)};
}

uint8_t Block::write(const Chain& request, uint64_t sector) const noexcept {
  const uint64_t bytes = request.readable_bytes() - kHeaderBytes;
  if (read_only_ || bytes % kSectorBytes != 0 || bytes > kMaxDataBytes || !holds(sector, bytes))
    return kIoError;
  // The data follows the header, maybe in the same buffer.
  Parts parts;
  const auto data = cut(request.readable(), kHeaderBytes, bytes, parts);
  const uint64_t done = all_of(data, bytes, sector * kSectorBytes, [this](auto... arguments) {
    // A driver that cannot flush takes what is written to be on the disk: 5.2.6.2.
    const int flags = (taken_features() & kFlush) != 0 ? 0 : RWF_DSYNC;
    return ::pwritev2(image_.fd.get(), arguments..., flags);
  });
  return done == bytes ? kOk : kIoError;
}

uint8_t Block::flush() const noexcept {
  if (read_only_) // it was not offered
    return kUnsupported;
  return ::fdatasync(image_.fd.get()) == 0 ? kOk : kIoError;
}

Block::Answer Block::identify(const Chain& request) const noexcept {
  std::array<std::byte, kIdBytes> id{};
  if (request.writable_bytes() != kIdBytes + 1)
    return {kIoError, 0};
  std::memcpy(id.data(), name_.data(), std::min(name_.size(), id.size()));
  (void)request.write(0, id); // there is room
  return {kOk, kIdBytes};
}

uint8_t Block::change_range(const Chain& request, uint32_t type) const noexcept {
  if (read_only_)
    return kUnsupported;
  std::array<std::byte, kRangeBytes> range{};
  if (request.readable_bytes() != kHeaderBytes + kRangeBytes || !request.read(kHeaderBytes, range))
    return kIoError;
  const auto sector = number_at<uint64_t>(range, 0);
  const auto sectors = number_at<uint32_t>(range, 8);
  const auto flags = number_at<uint32_t>(range, 12);
  const bool discard = type == kDiscardIt;
  if ((flags & ~(discard ? 0 : kUnmap)) != 0) // 5.2.6.2
    return kUnsupported;
  if (sectors > (discard ? kMaxDiscardSectors : kMaxZeroSectors) || !holds(sector, sectors * kSectorBytes))
    return kIoError;
  if (sectors == 0)
    return kOk;
  const uint64_t offset = sector * kSectorBytes;
  const uint64_t bytes = sectors * kSectorBytes;
  if (!discard) { // zeros are data: as in write()
    const bool flushes = (taken_features() & kFlush) != 0;
    return zero(offset, bytes, (flags & kUnmap) != 0) && (flushes || flush() == kOk) ? kOk : kIoError;
  }
  // A discard is advice: where the host cannot do it, the data may as well stay.
  const int done = ::fallocate(image_.fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                               static_cast<off_t>(offset), static_cast<off_t>(bytes));
  return done == 0 || not_here(errno) ? kOk : kIoError;
}

bool Block::zero(uint64_t offset, uint64_t bytes, bool may_unmap) const noexcept {
  const int mode =
      may_unmap ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE : FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
  if (::fallocate(image_.fd.get(), mode, static_cast<off_t>(offset), static_cast<off_t>(bytes)) == 0)
    return true;
  if (!not_here(errno))
    return false;
  static constexpr std::array<std::byte, 64 << 10> kZeros{};
  for (uint64_t done = 0; done < bytes;) {
    const uint64_t part = std::min<uint64_t>(kZeros.size(), bytes - done);
    const ssize_t got = ::pwrite(image_.fd.get(), kZeros.data(), part, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR)
      continue;
    if (got <= 0)
      return false;
    done += static_cast<uint64_t>(got);
  }
  return true;
}

// ---- the device table ---------------------------------------------------------------------------------------

size_t count_blocks(const VmConfig& config) {
  return config.disks.size();
}

std::expected<std::unique_ptr<Device>, Error> make_block(const VmConfig& config, size_t index) {
  const DiskConfig& disk = config.disks[index];
  auto image = BlockImage::open(disk, !config.disks_unlocked);
  if (!image)
    return std::unexpected(image.error());
  return std::make_unique<Block>(std::move(*image), disk.read_only, "disk" + std::to_string(index));
}

Properties describe_block(const VmConfig& config, size_t index) {
  const DiskConfig& disk = config.disks[index];
  Properties properties{{"stopvisor,path", disk.path}};
  if (disk.read_only)
    properties.push_back({"stopvisor,read-only", std::nullopt});
  return properties;
}

std::expected<void, Error> add_block(VmConfig& config, const Properties& properties) {
  const Property* const path = find(properties, "stopvisor,path");
  if (path == nullptr || !path->text || path->text->empty())
    return std::unexpected(Error{"read machine", "disk " + std::to_string(config.disks.size()),
                                 "stopvisor,path is missing or empty", Status::kUsage});
  config.disks.push_back({*path->text, find(properties, "stopvisor,read-only") != nullptr});
  return {};
}

} // namespace stopvisor::vmm::virtio
