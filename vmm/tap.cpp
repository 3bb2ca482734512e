// SPDX-License-Identifier: Apache-2.0
#include "vmm/tap.h"

#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

namespace stopvisor::vmm {
namespace {

constexpr const char* kDevice = "/dev/net/tun";
constexpr const char* kOperation = "open tap";
constexpr short kSingleQueue = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
constexpr uint32_t kDefaultMtu = 1500;

std::unexpected<Error> refuse(const std::string& name, std::string reason, Status status = Status::kFailed) {
  return std::unexpected(Error{kOperation, name, std::move(reason), status});
}

std::string text_of(int error_number) {
  return system_error("", "", error_number).reason;
}

ifreq request_for(const std::string& name) noexcept {
  ifreq request{};
  std::copy_n(name.data(), std::min(name.size(), sizeof request.ifr_name - 1), request.ifr_name);
  return request;
}

// What the kernel knows of an interface, in the network namespace of this process (sysfs may show another one's).
enum class Kind { kTap, kTun, kOther };

Kind kind_of(const std::string& name) noexcept {
  const UniqueFd asking(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ethtool_drvinfo info{};
  info.cmd = ETHTOOL_GDRVINFO;
  ifreq request = request_for(name);
  request.ifr_data = reinterpret_cast<char*>(&info);
  if (!asking || ::ioctl(asking.get(), SIOCETHTOOL, &request) != 0 ||
      std::string_view(info.driver, ::strnlen(info.driver, sizeof info.driver)) != "tun")
    return Kind::kOther;
  return std::string_view(info.bus_info, ::strnlen(info.bus_info, sizeof info.bus_info)) == "tap" ? Kind::kTap
                                                                                                  : Kind::kTun;
}

uint32_t mtu_of(const std::string& name) noexcept {
  const UniqueFd asking(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request = request_for(name);
  if (!asking || ::ioctl(asking.get(), SIOCGIFMTU, &request) != 0 || request.ifr_mtu <= 0)
    return kDefaultMtu;
  return uint32_t(request.ifr_mtu);
}

std::string how_to_make(const std::string& name) {
  return "ip tuntap add dev " + name + " mode tap user " + std::to_string(::geteuid());
}

std::unexpected<Error> refuse_device(const std::string& name, int error_number) {
  const std::string text = std::string(kDevice) + ": " + text_of(error_number);
  if (error_number == ENOENT || error_number == ENODEV || error_number == ENXIO)
    return refuse(name, text + "; the host's kernel needs its module tun (as root: modprobe tun)");
  if (error_number == EACCES || error_number == EPERM)
    return refuse(name, text + "; the user needs read and write access to it (Debian: mode 0666)");
  return refuse(name, text);
}

// Why TUNSETIFF refused.
std::unexpected<Error> refuse_attach(const std::string& name, bool exists, int error_number) {
  if (error_number == EBUSY)
    return refuse(name, "is used by another program", Status::kBusy);
  if (error_number == EPERM && exists)
    return refuse(name, "belongs to another user; as root: ip tuntap del dev " + name + " mode tap, then " +
                            how_to_make(name));
  if (error_number == EPERM)
    return refuse(name, "no such interface, and this process may not make one (CAP_NET_ADMIN); as root: " +
                            how_to_make(name) + " and ip link set " + name + " up");
  if (error_number == EINVAL && exists) {
    switch (kind_of(name)) {
    case Kind::kOther:
      return refuse(name, "is an interface, but no tap");
    case Kind::kTun:
      return refuse(name, "is a tun (IP packets), not a tap (Ethernet frames)");
    case Kind::kTap: // of all we ask for, this alone is fixed when a tap is made
      return refuse(name, "is a tap with several queues; make one without multi_queue");
    }
  }
  return refuse(name, text_of(error_number));
}

// Why a frame did not come or go. EBADFD: the interface was removed. EIO: it is down. EINVAL: no such frame or
// header.
FramePort::Outcome outcome_of(int error_number) noexcept {
  switch (error_number) {
  case EAGAIN:
  case EINTR: // a kick; whoever asked looks again
    return FramePort::Outcome::kLater;
  case EBADFD:
    return FramePort::Outcome::kGone;
  default:
    return FramePort::Outcome::kRefused;
  }
}

} // namespace

Tap::Tap(UniqueFd fd, std::string name, uint32_t mtu, bool is_new) noexcept
    : fd_(std::move(fd)), name_(std::move(name)), mtu_(mtu), is_new_(is_new) {}

std::expected<void, Error> check_interface_name(const std::string& name) {
  if (name.empty())
    return refuse(name, "needs the name of an interface", Status::kUsage);
  if (name.size() >= IFNAMSIZ)
    return refuse(name,
                  "is too long for the name of an interface (at most " + std::to_string(IFNAMSIZ - 1) + " bytes)",
                  Status::kUsage);
  // dev_valid_name() of Linux; '%' would have the kernel choose a name of its own.
  const auto forbidden = [](char letter) {
    return uint8_t(letter) <= ' ' || letter == '/' || letter == ':' || letter == '%' || letter == '\x7f';
  };
  if (name == "." || name == ".." || std::ranges::any_of(name, forbidden))
    return refuse(name, "cannot be the name of an interface", Status::kUsage);
  return {};
}

std::expected<Tap, Error> Tap::open(const std::string& name) {
  if (auto fine = check_interface_name(name); !fine)
    return std::unexpected(fine.error());
  UniqueFd fd(::open(kDevice, O_RDWR | O_NONBLOCK | O_CLOEXEC));
  if (!fd)
    return refuse_device(name, errno);
  const bool exists = ::if_nametoindex(name.c_str()) != 0;
  ifreq request = request_for(name);
  request.ifr_flags = kSingleQueue;
  if (::ioctl(fd.get(), TUNSETIFF, &request) != 0)
    return refuse_attach(name, exists, errno);
  int header_bytes = kHeaderBytes;
  if (::ioctl(fd.get(), TUNSETVNETHDRSZ, &header_bytes) != 0)
    return refuse(name, "TUNSETVNETHDRSZ: " + text_of(errno));
  Tap tap(std::move(fd), name, mtu_of(name), !exists);
  if (!tap.set_offloads(0)) // what the last program that used it had asked for may still be set
    return refuse(name, "TUNSETOFFLOAD: " + text_of(errno));
  return tap;
}

FramePort::Received Tap::receive(std::span<std::byte> to) const noexcept {
  const ssize_t bytes = ::read(fd_.get(), to.data(), to.size());
  if (bytes >= 0)
    return {Outcome::kDone, size_t(bytes)};
  return {outcome_of(errno), 0};
}

FramePort::Outcome Tap::send(std::span<const iovec> parts) const noexcept {
  return ::writev(fd_.get(), parts.data(), int(parts.size())) >= 0 ? Outcome::kDone : outcome_of(errno);
}

bool Tap::set_offloads(uint32_t offloads) const noexcept {
  return ::ioctl(fd_.get(), TUNSETOFFLOAD, static_cast<unsigned long>(offloads)) == 0;
}

} // namespace stopvisor::vmm
