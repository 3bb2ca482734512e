// SPDX-License-Identifier: Apache-2.0
// Writes AML, the byte code of ACPI's DSDT: each function gives the bytes of one term.
//
// Terms nest as in the source language: device("PWRB", {name("_HID", eisa_id("PNP0C0C"))}). Nothing here comes from
// outside the VMM, so that wrong use is our own bug, and asserted. Source: ACPI 6.5, chapter 20 (AML) and 19.3.4
// (EISA ids).
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string_view>
#include <vector>

namespace stopvisor::vmm::aml {

using Bytes = std::vector<std::byte>;

// Segments of up to four characters with dots between them, the root's backslash before: "\_SB.PWRB", "_HID".
[[nodiscard]] Bytes name_path(std::string_view path);

[[nodiscard]] Bytes integer(uint64_t value);
[[nodiscard]] Bytes text(std::string_view value);
// Three capital letters and four hexadecimal digits: "PNP0501".
[[nodiscard]] Bytes eisa_id(std::string_view id);
[[nodiscard]] Bytes buffer(std::span<const std::byte> bytes);
[[nodiscard]] Bytes package(std::initializer_list<Bytes> elements);

[[nodiscard]] Bytes name(std::string_view path, const Bytes& value);
[[nodiscard]] Bytes scope(std::string_view path, std::initializer_list<Bytes> terms);
[[nodiscard]] Bytes device(std::string_view path, std::initializer_list<Bytes> terms);
// Serialized: one thread at a time.
[[nodiscard]] Bytes method(std::string_view path, unsigned arguments, std::initializer_list<Bytes> terms);

// A 32-bit register at an I/O port, `field`, in the region `region`.
[[nodiscard]] Bytes port_register32(std::string_view region, std::string_view field, uint16_t port);

// Local0, where a method keeps what it read.
[[nodiscard]] Bytes local0();
[[nodiscard]] Bytes store(const Bytes& from, const Bytes& to);
// If ((value & mask)) { terms }
[[nodiscard]] Bytes if_set(const Bytes& value, uint64_t mask, std::initializer_list<Bytes> terms);
[[nodiscard]] Bytes notify(std::string_view path, uint64_t value);

// The value of _CRS: resource descriptors (ACPI 6.5, 6.4) and their end tag.
[[nodiscard]] Bytes resources(std::initializer_list<Bytes> descriptors);
[[nodiscard]] Bytes io_ports(uint16_t first, uint8_t count);
[[nodiscard]] Bytes memory32(uint32_t gpa, uint32_t size_bytes);
// Edge-triggered, active high, not shared.
[[nodiscard]] Bytes interrupt(uint32_t gsi);

} // namespace stopvisor::vmm::aml
