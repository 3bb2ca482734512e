// SPDX-License-Identifier: Apache-2.0
// The disk: what is written is read again, and whatever is not a request of this disk gets an error and changes
// nothing.
#include "vmm/virtio/block.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/unit/virtio/driver.h"

namespace stopvisor::vmm::virtio {
namespace {

using testing::Driver;

constexpr uint64_t kSectors = 16'384; // 8 MiB
constexpr uint32_t kIn = 0, kOut = 1, kFlush = 4, kGetId = 8, kDiscard = 11, kWriteZeroes = 13;
constexpr char kOk = 0, kIoError = 1, kUnsupported = 2;
constexpr uint64_t kFlushFeature = 1 << 9;

// A file of its own, gone at the end.
class Image {
public:
  explicit Image(uint64_t bytes = kSectors * kSectorBytes) {
    const int fd = ::mkstemp(path_.data());
    EXPECT_GE(fd, 0);
    EXPECT_EQ(::ftruncate(fd, static_cast<off_t>(bytes)), 0);
    ::close(fd);
  }
  ~Image() { ::unlink(path_.c_str()); }
  Image(const Image&) = delete;
  Image& operator=(const Image&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }
  void put(uint64_t offset, const std::string& text) const {
    const UniqueFd fd(::open(path_.c_str(), O_WRONLY | O_CLOEXEC));
    EXPECT_EQ(::pwrite(fd.get(), text.data(), text.size(), static_cast<off_t>(offset)), std::ssize(text));
  }
  [[nodiscard]] std::string get(uint64_t offset, size_t length) const {
    const UniqueFd fd(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
    std::string text(length, '\0');
    EXPECT_EQ(::pread(fd.get(), text.data(), text.size(), static_cast<off_t>(offset)), std::ssize(text));
    return text;
  }
  [[nodiscard]] int64_t blocks() const { // of 512 bytes, that it takes on its own disk
    struct stat status{};
    EXPECT_EQ(::stat(path_.c_str(), &status), 0);
    return status.st_blocks;
  }

private:
  std::string path_ = "/tmp/stopvisor-disk-XXXXXX";
};

std::string number(uint64_t value, size_t bytes) {
  return {reinterpret_cast<const char*>(&value), bytes}; // little-endian
}
std::string header(uint32_t type, uint64_t sector) {
  return number(type, 4) + number(0, 4) + number(sector, 8);
}
std::string range(uint64_t sector, uint32_t sectors, uint32_t flags = 0) {
  return number(sector, 8) + number(sectors, 4) + number(flags, 4);
}
std::string status_byte(char status) {
  return std::string(1, status); // not {1, status}, which would be two characters
}

// A disk with a driver.
class Disk {
public:
  explicit Disk(const Image& image, bool read_only = false, uint64_t features = kVersion1 | kFlushFeature)
      : block_(*BlockImage::open({image.path(), read_only}), read_only, "disk7"), driver(block_) {
    driver.start(features & (driver.offered()));
  }

private:
  Block block_;

public:
  Driver driver;
  [[nodiscard]] std::vector<DeviceCounter> counters() const { return block_.counters(); }
  char write(uint64_t sector, const std::string& data) {
    return driver.request({header(kOut, sector), data}, {1}).bytes.front();
  }
  std::string read(uint64_t sector, uint32_t bytes) { // data, then status
    return driver.request({header(kIn, sector)}, {bytes, 1}).bytes;
  }
  char change(uint32_t type, const std::string& range) {
    return driver.request({header(type, 0), range}, {1}).bytes.front();
  }
};

TEST(Block, SaysHowLargeItIs) {
  const Image image;
  Disk disk(image);
  uint64_t sectors = 0;
  disk.driver.mmio.read(testing::kConfig, std::as_writable_bytes(std::span(&sectors, 1)));
  EXPECT_EQ(sectors, kSectors);
  EXPECT_EQ(disk.driver.read(testing::kConfig + 20), kSectorBytes);
  EXPECT_EQ(disk.driver.read(testing::kDeviceId), 2U);
}

TEST(Block, CountsWhatWasDoneAndWhatGotAnErrorApart) {
  const Image image;
  Disk disk(image);
  EXPECT_EQ(disk.write(0, std::string(1024, 'a')), kOk);
  EXPECT_EQ(disk.write(kSectors, std::string(512, 'a')), kIoError);
  EXPECT_EQ(disk.read(0, 512).back(), kOk);
  EXPECT_EQ(disk.read(0, 2048).back(), kOk);
  EXPECT_EQ(disk.read(0, 513).back(), kIoError);
  EXPECT_EQ(disk.driver.request({header(kFlush, 0)}, {1}).bytes.front(), kOk);
  EXPECT_EQ(disk.change(kDiscard, range(0, 8)), kOk);
  EXPECT_EQ(disk.change(kWriteZeroes, range(0, 8)), kOk);
  EXPECT_EQ(disk.driver.request({header(77, 0)}, {1}).bytes.front(), kUnsupported);
  disk.driver.write(testing::kStatus, 0); // a driver that begins anew does not make it forget

  std::string counted;
  for (const DeviceCounter& counter : disk.counters())
    counted += std::string(counter.name) + " " + std::to_string(counter.value) + "\n";
  EXPECT_EQ(counted, "reads 2\nbytes_read 2560\nwrites 1\nbytes_written 1024\nflushes 1\ndiscards 1\nzeroings 1\n"
                     "errors 3\n");
}

TEST(Block, ReadsWhatWasWrittenToItsImage) {
  const Image image;
  Disk disk(image);
  const std::string data = std::string(512, 'a') + std::string(512, 'b') + std::string(512, 'c');
  EXPECT_EQ(disk.write(5, data), kOk);
  EXPECT_EQ(image.get(uint64_t{5} * 512, data.size()), data);
  EXPECT_EQ(image.get(0, size_t{5} * 512), std::string(size_t{5} * 512, '\0'));
  const auto answer = disk.driver.request({header(kIn, 6)}, {1024, 1});
  EXPECT_EQ(answer.bytes, data.substr(512) + status_byte(kOk));
  EXPECT_EQ(answer.written, 1025U);
}

// A device must not care where the driver cuts (virtio 1.2, 2.7.4.1).
TEST(Block, CaresForBytesNotForBuffers) {
  const Image image;
  Disk disk(image);
  const std::string head = header(kOut, 3);
  const std::string data = std::string(300, 'x') + std::string(212, 'y');
  EXPECT_EQ(
      disk.driver.request({head.substr(0, 3), head.substr(3) + data.substr(0, 100), data.substr(100)}, {1}).bytes,
      status_byte(kOk));
  EXPECT_EQ(disk.driver.request({header(kIn, 3)}, {100, 413}).bytes, data + status_byte(kOk)); // status behind data
}

TEST(Block, ReachesFromItsFirstToItsLastSectorAndNotFurther) {
  const Image image;
  Disk disk(image);
  const std::string sector(512, 's');
  EXPECT_EQ(disk.write(kSectors - 1, sector), kOk);
  EXPECT_EQ(disk.read(kSectors - 1, 512), sector + status_byte(kOk));
  for (const uint64_t outside : {kSectors, kSectors + 1, uint64_t{1} << 55, ~uint64_t{0}}) {
    EXPECT_EQ(disk.write(outside, sector), kIoError);
    EXPECT_EQ(disk.read(outside, 512).back(), kIoError);
  }
  EXPECT_EQ(disk.write(kSectors - 1, sector + sector), kIoError);
  EXPECT_EQ(disk.read(kSectors - 1, 1024),
            std::string(1024, '\0') + status_byte(kIoError)); // nothing is left undefined
  struct stat status{};
  ASSERT_EQ(::stat(image.path().c_str(), &status), 0);
  EXPECT_EQ(status.st_size, static_cast<off_t>(kSectors * kSectorBytes)); // it has not grown
}

TEST(Block, RefusesPartsOfSectors) {
  const Image image;
  Disk disk(image);
  EXPECT_EQ(disk.write(0, std::string(511, 'x')), kIoError);
  EXPECT_EQ(disk.write(0, std::string(513, 'x')), kIoError);
  EXPECT_EQ(disk.read(0, 100).back(), kIoError);
  EXPECT_EQ(image.get(0, 1024), std::string(1024, '\0'));
}

TEST(Block, RefusesRequestsThatWouldKeepAStopWaiting) {
  const Image image;
  Disk disk(image);
  const std::string most(4 << 20, 'm');
  EXPECT_EQ(disk.write(0, most), kOk);
  EXPECT_EQ(disk.write(0, most + std::string(512, 'n')), kIoError);
  EXPECT_EQ(disk.read(0, (4 << 20) + 512).back(), kIoError);
}

TEST(Block, GivesItsNameAsSerialNumber) {
  const Image image;
  Disk disk(image);
  EXPECT_EQ(disk.driver.request({header(kGetId, 0)}, {20, 1}).bytes,
            "disk7" + std::string(15, '\0') + status_byte(kOk));
  EXPECT_EQ(disk.driver.request({header(kGetId, 0)}, {19, 1}).bytes.back(), kIoError);
}

TEST(Block, FlushesAndKnowsNoOtherRequests) {
  const Image image;
  Disk disk(image);
  EXPECT_EQ(disk.driver.request({header(kFlush, 0)}, {1}).bytes, status_byte(kOk));
  for (const uint32_t type : {2U, 3U, 5U, 14U, 99U, UINT32_MAX})
    EXPECT_EQ(disk.driver.request({header(type, 0)}, {1}).bytes, status_byte(kUnsupported)) << type;
}

TEST(Block, WritesThroughForADriverThatCannotFlush) {
  const Image image;
  Disk disk(image, false, kVersion1);
  EXPECT_EQ(disk.write(1, std::string(512, 'w')), kOk);
  EXPECT_EQ(image.get(512, 512), std::string(512, 'w'));
}

TEST(Block, GivesBackRequestsItCannotAnswer) {
  const Image image;
  Disk disk(image);
  EXPECT_EQ(disk.driver.request({header(kIn, 0)}, {}).written, 0U); // no room for a status
  EXPECT_EQ(disk.driver.request({header(kOut, 0).substr(0, 15)}, {1}).bytes, status_byte(kIoError));
  EXPECT_EQ(disk.driver.request({}, {1}).bytes, status_byte(kIoError));
  EXPECT_EQ(disk.driver.request({}, {512, 1}).bytes.back(), kIoError);
  EXPECT_EQ(disk.driver.mmio.broken(), "");
  EXPECT_EQ(disk.write(1, std::string(512, 'w')), kOk); // and goes on
}

TEST(Block, DiscardsAndZeroesWithinItsBounds) {
  const Image image;
  Disk disk(image);
  const std::string data(64 << 10, 'd');
  ASSERT_EQ(disk.write(0, data), kOk);
  const int64_t before = image.blocks();
  EXPECT_EQ(disk.change(kDiscard, range(0, 64)), kOk);
  EXPECT_LE(image.blocks(), before); // less, where the file system knows holes
  EXPECT_EQ(disk.change(kWriteZeroes, range(65, 2)), kOk);
  EXPECT_EQ(disk.change(kWriteZeroes, range(70, 2, 1)), kOk);
  EXPECT_EQ(image.get(uint64_t{64} * 512, size_t{8} * 512), std::string(512, 'd') + std::string(1024, '\0') +
                                                                std::string(size_t{3} * 512, 'd') +
                                                                std::string(1024, '\0'));
  for (const uint32_t type : {kDiscard, kWriteZeroes}) {
    EXPECT_EQ(disk.change(type, range(kSectors - 1, 2)), kIoError);
    EXPECT_EQ(disk.change(type, range(~uint64_t{0}, 1)), kIoError);
    EXPECT_EQ(disk.change(type, range(0, UINT32_MAX)), kIoError);
    EXPECT_EQ(disk.change(type, range(0, 8, 2)), kUnsupported);        // a flag there is not
    EXPECT_EQ(disk.change(type, range(0, 8) + range(8, 8)), kIoError); // one range, it says
    EXPECT_EQ(disk.change(type, range(0, 8).substr(1)), kIoError);
    EXPECT_EQ(disk.change(type, range(9, 0)), kOk);
  }
  EXPECT_EQ(disk.change(kDiscard, range(0, 8, 1)), kUnsupported);
  EXPECT_EQ(image.get(uint64_t{64} * 512, 512), std::string(512, 'd'));
  struct stat status{};
  ASSERT_EQ(::stat(image.path().c_str(), &status), 0);
  EXPECT_EQ(status.st_size, static_cast<off_t>(kSectors * kSectorBytes));
}

TEST(Block, ThatIsReadOnlyIsNotChanged) {
  const Image image;
  image.put(512, std::string(512, 'k'));
  ASSERT_EQ(::chmod(image.path().c_str(), 0400), 0);
  Disk disk(image, true);
  EXPECT_EQ(disk.driver.offered() & (kFlushFeature | 1 << 13 | 1 << 14 | 1 << 5), uint64_t{1 << 5});
  EXPECT_EQ(disk.write(1, std::string(512, 'w')), kIoError);
  EXPECT_EQ(disk.change(kDiscard, range(1, 1)), kUnsupported);
  EXPECT_EQ(disk.change(kWriteZeroes, range(1, 1)), kUnsupported);
  EXPECT_EQ(disk.read(1, 512), std::string(512, 'k') + status_byte(kOk));
}

TEST(Block, ReportsAnErrorWhereItsImageHasBecomeShorter) {
  const Image image;
  image.put(0, std::string(1024, 'k'));
  Disk disk(image);
  ASSERT_EQ(::truncate(image.path().c_str(), 700), 0);
  EXPECT_EQ(disk.read(0, 512), std::string(512, 'k') + status_byte(kOk));
  EXPECT_EQ(disk.read(0, 1024).back(), kIoError);
  EXPECT_EQ(disk.read(8, 512), std::string(512, '\0') + status_byte(kIoError));
}

TEST(Block, ReportsAnErrorWhereTheHostHasNoMoreRoom) {
  const Image image;
  Disk disk(image);
  // A limit on the size of files stands for a full disk: the same path, another number of the error.
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{4096, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const char inside = disk.write(7, std::string(512, 'w'));
  const char across = disk.write(7, std::string(1024, 'w'));
  const char outside = disk.write(8, std::string(512, 'w'));
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(inside, kOk);
  EXPECT_EQ(across, kIoError);
  EXPECT_EQ(outside, kIoError);
  EXPECT_EQ(disk.write(8, std::string(512, 'w')), kOk);
}

// ---- opening ------------------------------------------------------------------------------------------------

std::string refusal(const DiskConfig& disk, Status status) {
  const auto image = BlockImage::open(disk);
  if (image)
    return "it was opened";
  EXPECT_EQ(image.error().object, disk.path);
  EXPECT_EQ(image.error().status, status);
  return image.error().reason;
}

TEST(BlockImage, IsNoDirectoryDeviceOrNothing) {
  EXPECT_EQ(refusal({"/tmp/no/such/disk", false}, Status::kFailed), "No such file or directory");
  EXPECT_EQ(refusal({"/tmp", true}, Status::kUsage), "is a directory");
  EXPECT_EQ(refusal({"/tmp", false}, Status::kFailed), "Is a directory");
  EXPECT_EQ(refusal({"/dev/null", true}, Status::kUsage), "is neither a file nor a block device");
}

TEST(BlockImage, IsWholeSectors) {
  for (const uint64_t bytes : {0U, 1U, 511U, 513U, 1'000'000U}) {
    const Image image(bytes);
    EXPECT_EQ(refusal({image.path(), false}, Status::kUsage),
              "its size, " + std::to_string(bytes) + " bytes, is not a number of sectors of 512 bytes");
  }
}

TEST(BlockImage, DoesNotWaitForAFifo) {
  const Image image;
  const std::string fifo = image.path() + ".fifo";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_EQ(refusal({fifo, true}, Status::kUsage), "is neither a file nor a block device");
  ::unlink(fifo.c_str());
}

TEST(BlockImage, IsSharedByReadersAlone) {
  const Image image;
  {
    const auto writer = BlockImage::open({image.path(), false});
    ASSERT_TRUE(writer.has_value());
    EXPECT_NE(refusal({image.path(), false}, Status::kBusy).find("it is in use"), std::string::npos);
    EXPECT_NE(refusal({image.path(), true}, Status::kBusy).find("to be written"), std::string::npos);
  }
  const auto reader = BlockImage::open({image.path(), true});
  const auto another = BlockImage::open({image.path(), true});
  EXPECT_TRUE(reader.has_value() && another.has_value());
  EXPECT_NE(refusal({image.path(), false}, Status::kBusy).find(",ro"), std::string::npos);
}

TEST(BlockImage, SaysWhatHelpsThoseWhoMayOnlyRead) {
  const Image image;
  ASSERT_EQ(::chmod(image.path().c_str(), 0444), 0);
  const uid_t self = ::geteuid();
  if (self == 0) { // root may write everywhere
    ASSERT_EQ(::seteuid(65'534), 0);
  }
  const std::string reason = refusal({image.path(), false}, Status::kFailed);
  const bool readable = BlockImage::open({image.path(), true}).has_value();
  ASSERT_EQ(::seteuid(self), 0);
  EXPECT_EQ(reason, "Permission denied (to write; \",ro\" asks for reading only)");
  EXPECT_TRUE(readable);
}

// As a guest goes from one VMM to another: opened while the other has it, locked when that has let go of it.
TEST(BlockImage, CanBeOpenedWithoutItsLockAndLockedLater) {
  const Image image;
  const DiskConfig disk{image.path(), false};
  const auto source = BlockImage::open(disk);
  ASSERT_TRUE(source) << source.error().message();
  EXPECT_EQ(BlockImage::open(disk).error().status, Status::kBusy);
  const auto destination = BlockImage::open(disk, false);
  ASSERT_TRUE(destination) << destination.error().message();
  const auto early = lock_image(destination->fd.get(), disk);
  ASSERT_FALSE(early);
  EXPECT_EQ(early.error().status, Status::kBusy);
  EXPECT_EQ(early.error().object, image.path());
  unlock_image(source->fd.get());
  EXPECT_TRUE(lock_image(destination->fd.get(), disk));
  EXPECT_FALSE(lock_image(source->fd.get(), disk)); // it does not get it back by itself
}

} // namespace
} // namespace stopvisor::vmm::virtio
