// SPDX-License-Identifier: Apache-2.0
// The registers, and how an interrupt is neither lost nor taken for another.
//
// The line is an edge, raised through an eventfd by the worker while vCPUs read and clear the cause:
//
//   worker                                   driver's handler
//   ------                                   ----------------
//   U  publishes a used entry                R  reads InterruptStatus
//   C  InterruptStatus |= cause    -- VS2 -> K  InterruptACK: InterruptStatus &= ~what R read
//   E  edge                                  L  looks at the used rings
//
// U comes before C, C before E; R, K, L follow each other. Where K clears what C set, C comes before K, and L sees
// U (VS2), though R may have read the bit of an earlier entry: the edge then starts the handler once more, which
// finds no cause and nothing to do. Where C comes after K, the bit stays, and E, which is still to come, starts the
// handler. An edge that comes while the handler runs is kept by the local APIC; one that comes while an earlier one
// is kept merges with it, and that handler has not read R yet.
#include "vmm/virtio/mmio.h"

#include <algorithm>
#include <cstring>

namespace stopvisor::vmm::virtio {
namespace {

// virtio 1.2, 4.2.2
enum Register : uint64_t {
  kMagic = 0x00,
  kVersion = 0x04,
  kDeviceId = 0x08,
  kVendorId = 0x0c,
  kDeviceFeatures = 0x10,
  kDeviceFeaturesSelect = 0x14,
  kDriverFeatures = 0x20,
  kDriverFeaturesSelect = 0x24,
  kQueueSelect = 0x30,
  kQueueSizeMax = 0x34,
  kQueueSize = 0x38,
  kQueueReady = 0x44,
  // kQueueNotify = 0x50
  kInterruptStatus = 0x60,
  kInterruptAck = 0x64,
  kStatus = 0x70,
  kQueueDescriptorsLow = 0x80,
  kQueueDescriptorsHigh = 0x84,
  kQueueAvailableLow = 0x90,
  kQueueAvailableHigh = 0x94,
  kQueueUsedLow = 0xa0,
  kQueueUsedHigh = 0xa4,
  kConfigGeneration = 0xfc,
  kConfig = 0x100,
};

constexpr uint32_t kMagicValue = 0x7472'6976; // "virt"
constexpr uint32_t kVersionValue = 2;
constexpr uint32_t kVendor = 0x504f'5453; // "STOP"
constexpr uint32_t kNoSuchRegister = ~uint32_t{0};
constexpr uint32_t kDriversBits = kAcknowledge | kDriver | kDriverOk | kFeaturesOk | kFailed;

void put_low(uint64_t& word, uint32_t half) {
  word = (word & ~uint64_t{0xffff'ffff}) | half;
}
void put_high(uint64_t& word, uint32_t half) {
  word = (word & 0xffff'ffff) | uint64_t{half} << 32;
}

} // namespace

Mmio::Mmio(Device& device, Surroundings around)
    : device_(device), around_(std::move(around)),
      offered_(device.features() | kVersion1 | kIndirectDescriptors | kEventIndex),
      settings_(device.queue_sizes().size()) {
  for (size_t queue = 0; queue < settings_.size(); ++queue)
    queues_.push_back(std::make_unique<Queue>(around_.memory, around_.written));
  device_.on_config_change([this] { config_changed(); });
}

// ---- the driver's side --------------------------------------------------------------------------------------

void Mmio::read(uint64_t offset, std::span<std::byte> data) noexcept {
  std::ranges::fill(data, std::byte{0xff});
  if (offset >= kConfig) {
    const auto config = device_.config();
    const uint64_t at = offset - kConfig;
    if (at < config.size() && data.size() <= config.size() - at)
      std::memcpy(data.data(), config.data() + at, data.size());
    return;
  }
  if (offset % sizeof(uint32_t) != 0 || data.size() != sizeof(uint32_t)) // 4.2.2.2: drivers do not
    return;
  const uint32_t value = read_register(offset);
  std::memcpy(data.data(), &value, sizeof value);
}

void Mmio::write(uint64_t offset, std::span<const std::byte> data) noexcept {
  uint32_t value = 0;
  // No device here has configuration that a driver may write.
  if (offset >= kConfig || offset % sizeof value != 0 || data.size() != sizeof value)
    return;
  std::memcpy(&value, data.data(), sizeof value);
  write_register(offset, value);
}

// What every interrupt reads takes no lock: it must not wait for anything that takes time.
uint32_t Mmio::read_register(uint64_t offset) noexcept {
  switch (offset) {
  case kMagic:
    return kMagicValue;
  case kVersion:
    return kVersionValue;
  case kDeviceId:
    return device_.type();
  case kVendorId:
    return kVendor;
  case kInterruptStatus:
    return interrupt_status_.load(std::memory_order_acquire); // VS2
  case kStatus:
    return status();
  case kConfigGeneration:
    return config_generation_.load(std::memory_order_acquire); // VS3
  default:
    return read_setting(offset);
  }
}

uint32_t Mmio::read_setting(uint64_t offset) noexcept {
  const std::lock_guard guard(lock_);
  const uint32_t queue = queue_select_;
  const bool exists = queue < settings_.size();
  switch (offset) {
  case kDeviceFeatures:
    return device_features_select_ < 2 ? static_cast<uint32_t>(offered_ >> (32 * device_features_select_)) : 0;
  case kQueueSizeMax:
    return exists ? device_.queue_sizes()[queue] : 0;
  case kQueueReady:
    return exists && settings_[queue].ready ? 1 : 0;
  default: // among them SHMLen, which is all ones where there is no shared memory
    return kNoSuchRegister;
  }
}

void Mmio::write_register(uint64_t offset, uint32_t value) noexcept {
  switch (offset) {
  case kQueueNotify: // where KVM does not take it itself (ioeventfd)
    return around_.wake();
  case kInterruptAck:
    // acq_rel: the driver's look at the rings comes after it (VS2).
    interrupt_status_.fetch_and(~value, std::memory_order_acq_rel);
    return;
  default:
    break;
  }
  const std::lock_guard guard(lock_);
  switch (offset) {
  case kDeviceFeaturesSelect:
    device_features_select_ = value;
    return;
  case kDriverFeaturesSelect:
    driver_features_select_ = value;
    return;
  case kDriverFeatures:
    if ((status() & kFeaturesOk) == 0 && driver_features_select_ < 2)
      (driver_features_select_ == 0 ? put_low : put_high)(driver_features_, value);
    return;
  case kQueueSelect:
    queue_select_ = value;
    return;
  case kStatus:
    return write_status(value);
  default:
    return write_queue(offset, value);
  }
}

// CONTEXT: under lock_.
void Mmio::write_queue(uint64_t offset, uint32_t value) noexcept {
  const uint32_t queue = queue_select_;
  if (queue >= settings_.size())
    return;
  QueueSetting& setting = settings_[queue];
  if (offset == kQueueReady)
    return make_ready(queue, value == 1);
  if (setting.ready) // 4.2.2.2: a driver does not
    return;
  switch (offset) {
  case kQueueSize:
    setting.size = value;
    return;
  case kQueueDescriptorsLow:
    return put_low(setting.descriptors, value);
  case kQueueDescriptorsHigh:
    return put_high(setting.descriptors, value);
  case kQueueAvailableLow:
    return put_low(setting.available, value);
  case kQueueAvailableHigh:
    return put_high(setting.available, value);
  case kQueueUsedLow:
    return put_low(setting.used, value);
  case kQueueUsedHigh:
    return put_high(setting.used, value);
  default:
    return;
  }
}

// CONTEXT: under lock_.
Queue::Layout Mmio::layout_of(uint32_t queue) const noexcept {
  const QueueSetting& setting = settings_[queue];
  Queue::Layout layout;
  layout.size = setting.size <= device_.queue_sizes()[queue] ? static_cast<uint16_t>(setting.size) : uint16_t{0};
  layout.descriptors = setting.descriptors;
  layout.available = setting.available;
  layout.used = setting.used;
  layout.indirect = (driver_features_ & kIndirectDescriptors) != 0;
  layout.event_index = (driver_features_ & kEventIndex) != 0;
  return layout;
}

// CONTEXT: under lock_.
void Mmio::make_ready(uint32_t queue, bool ready) noexcept {
  QueueSetting& setting = settings_[queue];
  if (setting.ready == ready || (status() & kFeaturesOk) == 0)
    return;
  const std::lock_guard guard(turn_);
  setting.ready = ready;
  if (!ready)
    return queues_[queue]->stop();
  queues_[queue]->start(layout_of(queue));
  check_queues();
}

// A driver sets bits and clears none, but for all of them (virtio 1.2, 2.1.1). CONTEXT: under lock_.
void Mmio::write_status(uint32_t value) noexcept {
  if (value == 0)
    return reset_all();
  const std::lock_guard guard(turn_); // against need_reset()
  const uint32_t before = status();
  uint32_t after = before | (value & kDriversBits);
  const bool acceptable = (driver_features_ & ~offered_) == 0 && (driver_features_ & kVersion1) != 0;
  if ((before & kFeaturesOk) == 0 && !acceptable)
    after &= ~uint32_t{kFeaturesOk}; // the driver reads it back, and gives up
  if ((after & kFeaturesOk) == 0)
    after &= ~uint32_t{kDriverOk};
  status_.store(after, std::memory_order_release); // VS1
  if ((before & kDriverOk) == 0 && (after & kDriverOk) != 0) {
    device_.start(driver_features_, queues_);
    around_.wake(); // there may be chains already
  }
}

// CONTEXT: under lock_. The driver may use its memory for something else as soon as this returns: it waits for the
// end of a job (virtio 1.2, 2.4; Linux does not read the status again to wait for it).
void Mmio::reset_all() noexcept {
  const std::lock_guard guard(turn_);
  for (const auto& queue : queues_)
    queue->stop();
  device_.reset();
  std::ranges::fill(settings_, QueueSetting{});
  device_features_select_ = driver_features_select_ = queue_select_ = 0;
  driver_features_ = 0;
  broken_.store(nullptr, std::memory_order_relaxed);     // a literal or nothing
  interrupt_status_.store(0, std::memory_order_release); // VS2
  status_.store(0, std::memory_order_release);           // VS1
}

void Mmio::reset() noexcept {
  const std::lock_guard guard(lock_);
  reset_all();
}

// ---- the worker's side --------------------------------------------------------------------------------------

bool Mmio::runs() const noexcept {
  return (status() & (kDriverOk | kNeedsReset | kFailed)) == kDriverOk;
}

bool Mmio::do_job() noexcept {
  const std::lock_guard guard(turn_);
  if (!runs())
    return false;
  const bool busy = device_.serve(queues_);
  return check_queues() && busy;
}

Watch Mmio::watch() noexcept {
  const std::lock_guard guard(turn_);
  return runs() ? device_.watch() : Watch{};
}

// Tells the driver what has happened to the queues. RETURNS: false where one is broken. CONTEXT: under turn_.
bool Mmio::check_queues() noexcept {
  bool interrupt = false;
  for (const auto& queue : queues_) {
    interrupt |= queue->take_interrupt();
    if (queue->broken() != nullptr && (status() & kNeedsReset) == 0)
      need_reset(queue->broken());
  }
  if (interrupt)
    raise(kUsedBuffer);
  return (status() & kNeedsReset) == 0;
}

// virtio 1.2, 2.1.2: with DRIVER_OK the driver is told. CONTEXT: under turn_.
void Mmio::need_reset(const char* why) noexcept {
  broken_.store(why, std::memory_order_relaxed);                                    // a literal
  const uint32_t before = status_.fetch_or(kNeedsReset, std::memory_order_acq_rel); // VS1
  if ((before & kDriverOk) != 0)
    raise(kConfigChange);
}

void Mmio::config_changed() noexcept {
  config_generation_.fetch_add(1, std::memory_order_release); // VS3: after the change
  raise(kConfigChange);
}

void Mmio::raise(InterruptCause cause) noexcept {
  interrupt_status_.fetch_or(cause, std::memory_order_release); // C, VS2
  around_.interrupt();                                          // E
}

uint64_t Mmio::chains_done() const noexcept {
  uint64_t sum = 0;
  for (const auto& queue : queues_)
    sum += queue->chains_done();
  return sum;
}

std::string Mmio::broken() const noexcept {
  const char* const why = broken_.load(std::memory_order_relaxed); // a literal or nothing
  return why != nullptr ? why : "";
}

} // namespace stopvisor::vmm::virtio
