// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/net/own_network.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <stdexcept>

#include <gtest/gtest.h>

namespace stopvisor::vmm::testing {
namespace {

std::string& reason() {
  static std::string text;
  return text;
}

void write_map(const char* path, const std::string& text) {
  std::ofstream(path) << text;
}

void must(bool fine, const char* what) {
  if (!fine)
    throw std::runtime_error(std::string(what) + ": " + std::strerror(errno));
}

ifreq request_for(const std::string& name) {
  ifreq request{};
  name.copy(request.ifr_name, sizeof request.ifr_name - 1);
  return request;
}

UniqueFd socket_for(int family, int type, int protocol) {
  const int fd = ::socket(family, type | SOCK_CLOEXEC, protocol);
  if (fd < 0)
    throw std::runtime_error(std::string("socket: ") + std::strerror(errno));
  return UniqueFd(fd);
}
UniqueFd asking() {
  return socket_for(AF_INET, SOCK_DGRAM, 0);
}

constexpr uint32_t kNetAdmin = 1U << CAP_NET_ADMIN;

void set_effective(bool with_net_admin) {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  std::array<__user_cap_data_struct, 2> data{};
  must(::syscall(SYS_capget, &header, data.data()) == 0, "capget");
  data[0].effective = with_net_admin ? data[0].effective | kNetAdmin : data[0].effective & ~kNetAdmin;
  must(::syscall(SYS_capset, &header, data.data()) == 0, "capset");
}

} // namespace

void enter_own_network() {
  const auto uid = ::getuid();
  const auto gid = ::getgid();
  if (::unshare(CLONE_NEWNET) != 0) {
    if (::unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) {
      reason() = std::string("no network namespace of our own: ") + std::strerror(errno);
      return;
    }
    write_map("/proc/self/setgroups", "deny");
    write_map("/proc/self/uid_map", "0 " + std::to_string(uid) + " 1");
    write_map("/proc/self/gid_map", "0 " + std::to_string(gid) + " 1");
  }
  if (!UniqueFd(::open("/dev/net/tun", O_RDWR | O_CLOEXEC)))
    reason() = std::string("/dev/net/tun: ") + std::strerror(errno);
}

const std::string& why_no_taps() {
  return reason();
}

HostTap::HostTap(const std::string& name, short flags, int owner)
    : name_(name), flags_(flags), fd_(::open("/dev/net/tun", O_RDWR | O_CLOEXEC)) {
  ifreq request = request_for(name);
  request.ifr_flags = flags;
  must(::ioctl(fd_.get(), TUNSETIFF, &request) == 0, "TUNSETIFF");
  must(::ioctl(fd_.get(), TUNSETPERSIST, 1) == 0, "TUNSETPERSIST");
  if (owner >= 0)
    must(::ioctl(fd_.get(), TUNSETOWNER, owner) == 0, "TUNSETOWNER");
}

HostTap::~HostTap() {
  fd_.reset();
  if (::if_nametoindex(name_.c_str()) != 0)
    remove_interface(name_);
}

void set_up(const std::string& name, bool up) {
  ifreq request = request_for(name);
  must(::ioctl(asking().get(), SIOCGIFFLAGS, &request) == 0, "SIOCGIFFLAGS");
  request.ifr_flags = short(up ? request.ifr_flags | IFF_UP : request.ifr_flags & ~IFF_UP);
  must(::ioctl(asking().get(), SIOCSIFFLAGS, &request) == 0, "SIOCSIFFLAGS");
}

void set_mtu(const std::string& name, int mtu) {
  ifreq request = request_for(name);
  request.ifr_mtu = mtu;
  must(::ioctl(asking().get(), SIOCSIFMTU, &request) == 0, "SIOCSIFMTU");
}

void remove_interface(const std::string& name) {
  struct {
    nlmsghdr header;
    ifinfomsg link;
  } request{};
  request.header.nlmsg_len = sizeof request;
  request.header.nlmsg_type = RTM_DELLINK;
  request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
  request.link.ifi_index = int(::if_nametoindex(name.c_str()));
  const UniqueFd netlink = socket_for(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
  must(::send(netlink.get(), &request, sizeof request, 0) == ssize_t(sizeof request), "RTM_DELLINK");
  struct {
    nlmsghdr header;
    nlmsgerr error;
    std::array<char, 256> rest;
  } answer{};
  must(::recv(netlink.get(), &answer, sizeof answer, 0) > 0, "answer to RTM_DELLINK");
  errno = -answer.error.error;
  must(errno == 0, "RTM_DELLINK");
}

Wire::Wire(const std::string& name)
    : fd_(socket_for(AF_PACKET, SOCK_RAW, htons(kTestType))), index_(int(::if_nametoindex(name.c_str()))) {
  sockaddr_ll place{};
  place.sll_family = AF_PACKET;
  place.sll_protocol = htons(kTestType);
  place.sll_ifindex = index_;
  must(::bind(fd_.get(), reinterpret_cast<sockaddr*>(&place), sizeof place) == 0, "bind to the interface");
  const timeval limit{10, 0};
  must(::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0, "SO_RCVTIMEO");
}

void Wire::send(const std::string& frame) const {
  must(::send(fd_.get(), frame.data(), frame.size(), 0) == ssize_t(frame.size()), "send to the interface");
}

std::string Wire::receive() const {
  std::string frame(1 << 17, '\0');
  for (;;) {
    sockaddr_ll from{};
    socklen_t bytes = sizeof from;
    const auto got =
        ::recvfrom(fd_.get(), frame.data(), frame.size(), 0, reinterpret_cast<sockaddr*>(&from), &bytes);
    must(got >= 0, "a frame from the interface");
    if (from.sll_pkttype == PACKET_OUTGOING)
      continue; // one that was sent here
    frame.resize(size_t(got));
    return frame;
  }
}

std::string frame_of(const std::string& payload) {
  std::string frame(6, '\xff');
  frame += std::string("\x02\0\0\0\0\x09", 6);
  frame += char(kTestType >> 8);
  frame += char(kTestType & 0xff);
  return frame + payload;
}

WithoutRights::WithoutRights() {
  set_effective(false);
}
WithoutRights::~WithoutRights() {
  set_effective(true);
}

} // namespace stopvisor::vmm::testing

int main(int argc, char** argv) {
  stopvisor::vmm::testing::enter_own_network();
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
