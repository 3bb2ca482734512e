// SPDX-License-Identifier: Apache-2.0
#include "tools/bench/qemu_peer.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "guest/probe_image.h"

namespace stopvisor::tools {

using vmm::Error;

namespace {

Error failure(const std::string& reason) {
  return {"bench", "qemu", reason};
}

} // namespace

std::expected<QemuPeer, Error> QemuPeer::boot(uint32_t cpus) {
  std::string folder = (std::filesystem::temp_directory_path() / "stopvisor-bench-XXXXXX").string();
  if (mkdtemp(folder.data()) == nullptr)
    return std::unexpected(vmm::system_error("make folder", folder, errno));
  {
    std::ofstream file(folder + "/probe.elf", std::ios::binary);
    const auto image = probe::image();
    file.write(reinterpret_cast<const char*>(image.data()), static_cast<std::streamsize>(image.size()));
  }
  // -arch-capabilities: KVM on some hosts refuses the MSR that QEMU 7.2 wants to set for it.
  auto child = Child::start({"qemu-system-x86_64",
                             "-accel",
                             "kvm",
                             "-M",
                             "microvm",
                             "-cpu",
                             "host,-arch-capabilities",
                             "-m",
                             "64",
                             "-smp",
                             std::to_string(cpus),
                             "-kernel",
                             folder + "/probe.elf",
                             "-append",
                             "scenarios=gap cpus=" + std::to_string(cpus),
                             "-nodefaults",
                             "-display",
                             "none",
                             "-no-reboot",
                             "-qmp",
                             "unix:" + folder + "/qmp,server=on,wait=off"});
  if (!child) {
    std::filesystem::remove_all(folder);
    return std::unexpected(child.error());
  }
  QemuPeer peer(std::move(folder), std::move(*child));
  if (auto connected = peer.connect(); !connected)
    return std::unexpected(connected.error());
  return peer;
}

QemuPeer::~QemuPeer() {
  std::error_code ignored;
  if (!folder_.empty())
    std::filesystem::remove_all(folder_, ignored);
}

std::expected<void, Error> QemuPeer::connect() {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = folder_ + "/qmp";
  if (path.size() >= sizeof address.sun_path)
    return std::unexpected(failure("the socket's path is too long"));
  std::memcpy(address.sun_path, path.c_str(), path.size());
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  for (;;) {
    socket_.reset(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (::connect(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0)
      break;
    if (!child_.alive())
      return std::unexpected(failure("it ended at once; is it installed, and /dev/kvm usable for it?"));
    if (std::chrono::steady_clock::now() > deadline)
      return std::unexpected(failure("its QMP socket does not answer"));
    usleep(10'000); // it has no other way to say that it listens
  }
  if (auto greeting = read_line(); !greeting)
    return std::unexpected(greeting.error());
  if (auto agreed = execute("qmp_capabilities"); !agreed)
    return std::unexpected(agreed.error());
  return {};
}

std::expected<std::string, Error> QemuPeer::read_line() {
  for (;;) {
    if (const size_t end = received_.find('\n'); end != std::string::npos) {
      std::string line = received_.substr(0, end);
      received_.erase(0, end + 1);
      return line;
    }
    std::array<char, 4096> chunk;
    const ssize_t got = read(socket_.get(), chunk.data(), chunk.size());
    if (got <= 0)
      return std::unexpected(failure("it closed its QMP socket"));
    received_.append(chunk.data(), static_cast<size_t>(got));
  }
}

std::expected<int64_t, Error> QemuPeer::execute(std::string_view command) {
  const std::string text = "{\"execute\":\"" + std::string(command) + "\"}\n";
  const auto begin = std::chrono::steady_clock::now();
  if (write(socket_.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    return std::unexpected(failure("it takes no command"));
  for (;;) { // events come between
    const auto line = read_line();
    if (!line)
      return std::unexpected(line.error());
    if (line->find("\"return\"") != std::string::npos)
      return (std::chrono::steady_clock::now() - begin).count();
    if (line->find("\"error\"") != std::string::npos)
      return std::unexpected(failure(std::string(command) + ": " + *line));
  }
}

} // namespace stopvisor::tools
