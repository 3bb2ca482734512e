// SPDX-License-Identifier: Apache-2.0
// A network of the test program's own, in which it may make taps without touching the host's.
#pragma once

#include <cstdint>
#include <string>

#include "vmm/unique_fd.h"

namespace stopvisor::vmm::testing {

// Puts the process into a network namespace of its own (and a user namespace, where it needs one for that).
// CONTEXT: main(), while there is one thread.
void enter_own_network();
// Empty: we are in it, and /dev/net/tun can be opened. Else why not: tests skip themselves with it.
[[nodiscard]] const std::string& why_no_taps();

// A tap or tun (IFF_* of TUNSETIFF) as `ip tuntap add` makes one, there until the object goes.
class HostTap {
public:
  explicit HostTap(const std::string& name, short flags, int owner = -1);
  ~HostTap();
  HostTap(const HostTap&) = delete;
  HostTap& operator=(const HostTap&) = delete;
  void close() { fd_.reset(); } // others may attach; it stays, as `ip tuntap add` leaves it
  [[nodiscard]] int fd() const { return fd_.get(); }

private:
  std::string name_;
  short flags_;
  UniqueFd fd_;
};

void set_up(const std::string& name, bool up); // ip link set NAME up or down
void set_mtu(const std::string& name, int mtu);
void remove_interface(const std::string& name); // ip link del NAME

// Frames at the other end of the cable: what the host's kernel sends to and takes from the interface.
class Wire {
public:
  explicit Wire(const std::string& name);
  void send(const std::string& frame) const;
  // The next frame with the EtherType kTestType; blocks, fails the test after ten seconds without one.
  [[nodiscard]] std::string receive() const;

private:
  UniqueFd fd_;
  int index_ = 0;
};

inline constexpr uint16_t kTestType = 0x88b5; // for local experiments (IEEE 802)
// An Ethernet frame of that type.
[[nodiscard]] std::string frame_of(const std::string& payload);

// While it lives, this thread lacks CAP_NET_ADMIN.
class WithoutRights {
public:
  WithoutRights();
  ~WithoutRights();
  WithoutRights(const WithoutRights&) = delete;
  WithoutRights& operator=(const WithoutRights&) = delete;
};

} // namespace stopvisor::vmm::testing
