// SPDX-License-Identifier: Apache-2.0
// Text on COM1, for people. Everything machines read is in the results page.
#pragma once

#include <stdint.h>

namespace stopvisor::probe {

// CONTEXT: vCPU 0 at start-up, before any print. Does nothing where there is no UART.
void serial_init();

// CONTEXT: one vCPU at a time: vCPU 0, or one that crashes.
void print(const char* text);
void print(const char* text, uint32_t length);
void print_decimal(uint64_t value);
void print_hex(uint64_t value);

} // namespace stopvisor::probe
