// SPDX-License-Identifier: Apache-2.0
#include "tools/patch/spaces.h"

#include <algorithm>
#include <cstring>

#include "vmm/control/guest_symbols.h"
#include "vmm/linux/kernel_memory.h"
#include "vmm/linux/process_table.h"
#include "vmm/page_walk.h"
#include "vmm/units.h"

namespace stopvisor::patch {
namespace {

constexpr uint64_t kLongModeActive = 1ULL << 10;

} // namespace

std::string Location::text() const {
  return (paging == nullptr ? "gpa:" : "gva:") + vmm::to_hex(address);
}

Spaces::Spaces(const Guest& guest, const vmm::LinuxKernel* kernel)
    : guest_(guest), kernel_(kernel), vcpus_(guest.cpus()) {}

const vmm::Registers* Spaces::vcpu(uint32_t cpu) {
  if (cpu >= vcpus_.size())
    return nullptr;
  std::optional<vmm::Registers>& kept = vcpus_[cpu];
  if (!kept && !complete_)
    if (auto read = guest_.registers(cpu))
      kept = *read;
  return kept ? &*kept : nullptr;
}

void Spaces::read(const std::set<uint64_t>& cpus) {
  for (const uint64_t cpu : cpus)
    if (cpu < vcpus_.size())
      (void)vcpu(static_cast<uint32_t>(cpu)); // who asks for one that cannot be read is told then
  complete_ = true;
}

std::expected<Location, std::string> Spaces::in_tables(uint64_t address, uint64_t cr3) {
  for (const vmm::Registers& known : others_)
    if (known.cr3 == cr3 && &known != kernel_paging_)
      return Location{address, &known};
  const vmm::Registers* const base = vcpu(0);
  if (base == nullptr || (base->efer & kLongModeActive) == 0)
    return std::unexpected("vCPU 0 is not in 64-bit mode, which tables named by cr3= are for");
  others_.push_back(*base);
  others_.back().cr3 = cr3;
  return Location{address, &others_.back()};
}

std::expected<Location, std::string> Spaces::in_process(uint64_t address, uint64_t pid) {
  auto known = processes_.find(pid);
  if (known == processes_.end()) {
    std::expected<const vmm::Registers*, std::string> paging;
    if (const auto table = vmm::find_process_table(*kernel_, guest_.memory(), static_cast<uint32_t>(pid)); table) {
      others_.push_back(kernel_->paging());
      others_.back().cr3 = *table;
      paging = &others_.back();
    } else {
      paging = std::unexpected(table.error());
    }
    known = processes_.emplace(pid, std::move(paging)).first;
  }
  if (!known->second)
    return std::unexpected(known->second.error());
  return Location{address, *known->second};
}

std::expected<Location, std::string> Spaces::locate(const Place& place) {
  if (needs_kernel(place) && kernel_ == nullptr)
    return std::unexpected("the guest is no Linux that is known");
  if (needs_kernel(place) && kernel_paging_ == nullptr) {
    others_.push_back(kernel_->paging());
    kernel_paging_ = &others_.back();
  }
  switch (place.kind) {
  case Place::Kind::kPhysical:
    return Location{place.value, nullptr};
  case Place::Kind::kVcpu: {
    const vmm::Registers* const registers =
        place.of < vcpus_.size() ? vcpu(static_cast<uint32_t>(place.of)) : nullptr;
    if (registers == nullptr)
      return std::unexpected("there is no vCPU " + std::to_string(place.of));
    return Location{place.value, registers};
  }
  case Place::Kind::kCr3:
    return in_tables(place.value, place.of);
  case Place::Kind::kKernel:
    return Location{place.value, kernel_paging_};
  case Place::Kind::kProcess:
    return in_process(place.value, place.of);
  case Place::Kind::kSymbol:
    break;
  }
  const vmm::GuestAddress symbol{vmm::GuestAddress::Kind::kSymbol, place.value, static_cast<uint32_t>(place.of),
                                 place.symbol};
  const auto address = vmm::symbol_address("", symbol, *kernel_, guest_.memory());
  if (!address)
    return std::unexpected(address.error().reason);
  return Location{*address, kernel_paging_};
}

std::expected<const PieceFinder::Page*, std::string> PieceFinder::page_of(uint64_t address,
                                                                          const vmm::Registers& paging) {
  const uint64_t number = address / vmm::kPageBytes;
  Page& page = known_[(number ^ (number >> 9)) % kKnown];
  if (page.paging == &paging && page.number == number)
    return &page;
  const auto found = vmm::translate("", vmm::Gva{address}, paging, memory_);
  if (!found)
    return std::unexpected(found.error().object + " is " + found.error().reason);
  page = {&paging, number, *found};
  page.translation.gpa.value -= address % vmm::kPageBytes;
  return &page;
}

std::expected<void, std::string> PieceFinder::find(const Location& location, uint64_t length, Pieces& pieces) {
  pieces.list.clear();
  pieces.executable = pieces.writable = true;
  const auto refuse = [&](std::string why) {
    pieces.list.clear();
    return std::unexpected(std::move(why));
  };
  if (length == 0 || length - 1 > UINT64_MAX - location.address)
    return refuse(location.text() + " runs past the end of the address space");
  if (location.paging == nullptr) {
    const auto host = memory_.range(vmm::Gpa{location.address}, length);
    if (host.empty())
      return refuse(std::to_string(length) + " bytes at " + location.text() + " are not all RAM");
    pieces.list.push_back({vmm::Gpa{location.address}, host});
    return {};
  }
  for (uint64_t done = 0; done < length;) {
    const uint64_t at = location.address + done;
    const auto page = page_of(at, *location.paging);
    if (!page)
      return refuse(page.error());
    const uint64_t offset = at % vmm::kPageBytes;
    const vmm::Gpa gpa{(*page)->translation.gpa.value + offset};
    const uint64_t step = std::min(length - done, vmm::kPageBytes - offset);
    const auto host = memory_.range(gpa, step);
    if (host.empty())
      return refuse("gva:" + vmm::to_hex(at) + " maps gpa:" + vmm::to_hex(gpa.value) + ", which is not RAM");
    pieces.list.push_back({gpa, host});
    pieces.executable = pieces.executable && (*page)->translation.executable;
    pieces.writable = pieces.writable && (*page)->translation.writable;
    done += step;
  }
  return {};
}

bool holds(const Pieces& pieces, std::span<const std::byte> bytes) noexcept {
  for (const Piece& piece : pieces.list) {
    if (!std::ranges::equal(piece.host, bytes.first(piece.host.size())))
      return false;
    bytes = bytes.subspan(piece.host.size());
  }
  return true;
}

void copy_out(const Pieces& from, std::span<std::byte> to) noexcept {
  for (const Piece& piece : from.list) {
    std::memcpy(to.data(), piece.host.data(), piece.host.size());
    to = to.subspan(piece.host.size());
  }
}

bool read_at(const Location& location, std::span<std::byte> to, const vmm::GuestMemory& memory) noexcept {
  if (location.paging == nullptr)
    return memory.read(vmm::Gpa{location.address}, to);
  return vmm::KernelMemory(memory, *location.paging).read(location.address, to);
}

} // namespace stopvisor::patch
