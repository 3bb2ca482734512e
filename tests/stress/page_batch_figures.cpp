// SPDX-License-Identifier: Apache-2.0
// How fast pages get into batches, over a link, and out again, by what is in them: by the clock, and by the
// processor time of all threads, which tells more on a host that is busy with something else.
//
//   page_batch_figures [MIB [ROUNDS]]
#include <sys/mman.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "tools/migrate/frame.h"
#include "tools/migrate/page_batch.h"

namespace stopvisor::migrate {
namespace {

using Clock = std::chrono::steady_clock;

// Guest memory from address 0.
class Memory final : public PageTarget {
public:
  explicit Memory(size_t bytes) : bytes_(bytes) {
    void* const at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
      std::abort();
    ::madvise(at, bytes, MADV_HUGEPAGE);
    start_ = static_cast<std::byte*>(at);
    std::memset(start_, 1, bytes);
  }
  ~Memory() override { ::munmap(start_, bytes_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  std::span<std::byte> pages(vmm::Gpa gpa, uint64_t pages) noexcept override {
    return {start_ + gpa.value, pages * kPageBytes};
  }
  bool zero(vmm::Gpa gpa, uint64_t pages) noexcept override {
    std::memset(start_ + gpa.value, 0, pages * kPageBytes);
    return true;
  }
  [[nodiscard]] size_t count() const { return bytes_ / kPageBytes; }
  [[nodiscard]] std::byte* page(size_t number) { return start_ + number * kPageBytes; }

private:
  size_t bytes_;
  std::byte* start_ = nullptr;
};

// Every page another, by a number that does not come back.
void fill_data(Memory& memory, uint64_t seed) {
  uint64_t value = seed * 0x9e37'79b9'7f4a'7c15 + 1;
  for (size_t page = 0; page < memory.count(); ++page)
    for (size_t at = 0; at < kPageBytes; at += sizeof value) {
      value ^= value << 13;
      value ^= value >> 7;
      value ^= value << 17;
      std::memcpy(memory.page(page) + at, &value, sizeof value);
    }
}
void fill_with(Memory& memory, int byte) {
  std::memset(memory.page(0), byte, memory.count() * kPageBytes);
}

struct Took {
  double clock = 0; // seconds
  double processor = 0;
};
double processor_seconds() {
  timespec time{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return double(time.tv_sec) + double(time.tv_nsec) / 1e9;
}
Took time_of(const std::function<void()>& work) {
  const auto begin = Clock::now();
  const double processor = processor_seconds();
  work();
  return {std::chrono::duration<double>(Clock::now() - begin).count(), processor_seconds() - processor};
}
double median(const std::vector<Took>& times, double Took::* which) {
  std::vector<double> seconds;
  for (const Took& time : times)
    seconds.push_back(time.*which);
  std::ranges::sort(seconds);
  return seconds[seconds.size() / 2];
}

// All of `from` in batches, each of which `use` gets.
void sweep(BatchWriter& writer, Memory& from, const std::function<void(const BatchWriter::Payload&)>& use) {
  const auto flush = [&] {
    if (auto payload = writer.finish(); payload && payload->pages > 0)
      use(*payload);
  };
  for (size_t page = 0; page < from.count(); ++page)
    if (!writer.add(vmm::Gpa{page * kPageBytes}, page, from.page(page))) {
      flush();
      (void)writer.add(vmm::Gpa{page * kPageBytes}, page, from.page(page));
    }
  flush();
}

void report(const char* what, size_t bytes, const std::vector<Took>& times) {
  std::printf("%-44s %6.2f GB/s   %6.2f GB for a second of processor time\n", what,
              double(bytes) / 1e9 / median(times, &Took::clock),
              double(bytes) / 1e9 / median(times, &Took::processor));
}

void measure_writer(const char* what, Memory& from, int rounds, int level, bool forget) {
  std::vector<Took> times;
  SentPages kept(from.count());
  BatchWriter again(&kept, level);
  for (int round = 0; round < rounds; ++round) {
    SentPages fresh(from.count());
    BatchWriter writer(&fresh, level);
    if (!forget && round == 0)
      sweep(again, from, [](const auto&) {});
    times.push_back(time_of([&] { sweep(forget ? writer : again, from, [](const auto&) {}); }));
  }
  report(what, from.count() * kPageBytes, times);
}

void measure_reader(const char* what, Memory& from, Memory& to, int rounds, int level) {
  struct Batch {
    uint16_t flags;
    std::vector<std::byte> bytes;
  };
  std::vector<Batch> batches;
  BatchWriter writer(nullptr, level);
  sweep(writer, from, [&](const BatchWriter::Payload& payload) {
    Batch& batch = batches.emplace_back(payload.flags, std::vector<std::byte>());
    for (const auto part : payload.parts)
      batch.bytes.insert(batch.bytes.end(), part.begin(), part.end());
  });
  std::vector<Took> times;
  BatchReader reader;
  for (int round = 0; round < rounds; ++round)
    times.push_back(time_of([&] {
      for (const Batch& batch : batches)
        if (!reader.apply("figures", batch.flags, batch.bytes, to))
          std::abort();
    }));
  report(what, from.count() * kPageBytes, times);
}

struct Ends {
  std::unique_ptr<Link> source;
  std::unique_ptr<Link> destination;
};
Ends unix_ends() {
  std::array<int, 2> fds{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()) != 0)
    std::abort();
  return {std::make_unique<Link>("figures", "destination", vmm::UniqueFd(fds[0])),
          std::make_unique<Link>("figures", "source", vmm::UniqueFd(fds[1]))};
}
Ends tcp_ends() {
  const auto place = parse_address("figures", "tcp://127.0.0.1:0", Side::kDestination);
  const auto listener = Listener::open("figures", *place, false);
  const auto there = parse_address("figures", (*listener)->place(), Side::kSource);
  auto caller = dial("figures", *there, false, {});
  auto called = (*listener)->accept({}, std::chrono::seconds(5));
  return {std::move(*caller), std::move(*called)};
}

// A thread at each end, as a migration with one link has.
void measure_link(const char* what, const Ends& ends, Memory& from, Memory& to, int rounds) {
  std::vector<Took> times;
  FrameWriter frames(*ends.source);
  FrameReader incoming(*ends.destination);
  (void)frames.write(FrameKind::kHello, std::span<const std::byte>());
  Frame frame;
  (void)incoming.read(frame);
  for (int round = 0; round < rounds; ++round) {
    BatchWriter writer(nullptr, 0);
    BatchReader reader;
    std::thread destination([&] {
      while (incoming.read(frame) && frame.kind == FrameKind::kPages)
        if (!reader.apply("figures", frame.flags, frame.payload, to))
          std::abort();
    });
    times.push_back(time_of([&] {
      sweep(writer, from, [&](const BatchWriter::Payload& payload) {
        if (!frames.write(FrameKind::kPages, payload.parts, payload.flags))
          std::abort();
      });
      (void)frames.write(FrameKind::kAccepted, std::span<const std::byte>());
      destination.join();
    }));
  }
  report(what, from.count() * kPageBytes, times);
  if (std::memcmp(from.page(0), to.page(0), from.count() * kPageBytes) != 0)
    std::printf("... and it is NOT what was sent\n");
}

// What the socket itself takes: the same bytes, in pieces as large as a batch.
void measure_bare_link(const char* what, const Ends& ends, Memory& from, Memory& to, int rounds) {
  constexpr size_t kPiece = kBatchPages * kPageBytes;
  const size_t bytes = from.count() * kPageBytes / kPiece * kPiece;
  std::vector<Took> times;
  for (int round = 0; round < rounds; ++round)
    times.push_back(time_of([&] {
      std::thread destination([&] {
        for (size_t at = 0; at < bytes; at += kPiece)
          if (!ends.destination->read({to.page(0) + at, kPiece}))
            std::abort();
      });
      for (size_t at = 0; at < bytes; at += kPiece) {
        const iovec part{from.page(0) + at, kPiece};
        if (!ends.source->write(std::span(&part, 1)))
          std::abort();
      }
      destination.join();
    }));
  report(what, bytes, times);
}

int run(size_t mib, int rounds) {
  std::printf("%zu MiB, median of %d rounds, one thread at each end\n", mib, rounds);
  Memory from(mib << 20);
  Memory to(mib << 20);
  fill_data(from, 1);
  measure_writer("batches of data", from, rounds, 0, true);
  measure_writer("batches of what is unchanged", from, rounds, 0, false);
  measure_reader("data out of batches", from, to, rounds, 0);
  measure_bare_link("bytes alone over a unix socket", unix_ends(), from, to, rounds);
  measure_bare_link("bytes alone over TCP on the loopback", tcp_ends(), from, to, rounds);
  measure_link("data over a unix socket, end to end", unix_ends(), from, to, rounds);
  measure_link("data over TCP on the loopback, end to end", tcp_ends(), from, to, rounds);
  fill_with(from, 0);
  measure_writer("batches of zeros", from, rounds, 0, true);
  measure_reader("zeros out of batches", from, to, rounds, 0);
  fill_with(from, 7);
  measure_writer("batches of pages alike", from, rounds, 0, true);
  measure_writer("batches of pages alike, zstd 1", from, rounds, 1, true);
  return 0;
}

} // namespace
} // namespace stopvisor::migrate

int main(int count, char** words) {
  const size_t mib = count > 1 ? std::strtoul(words[1], nullptr, 10) : 512;
  const int rounds = count > 2 ? static_cast<int>(std::strtol(words[2], nullptr, 10)) : 9;
  if (mib == 0 || rounds <= 0) {
    std::fprintf(stderr, "usage: page_batch_figures [MIB [ROUNDS]]\n");
    return 2;
  }
  return stopvisor::migrate::run(mib, rounds);
}
