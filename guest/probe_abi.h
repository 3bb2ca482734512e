// SPDX-License-Identifier: Apache-2.0
// The ABI between the host and the built-in probe guest: every address, port and field both sides use.
//
// This header alone is shared. The guest writes its results into one block of guest memory while it
// runs; the host reads them (and writes the control words) through guest memory, best under a stop.
// It is freestanding: fixed-width integers and constants only, no libc, no host type.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace stopvisor::probe {

// ---- Guest physical layout -------------------------------------------------------------------------
// Everything lies below 16 MiB; a probe guest needs kMinMemoryBytes. The guest identity-maps all of its
// memory and the doorbell page for CPL 3 (4-level paging, 2 MiB pages; 4 KiB pages where code is
// rewritten). Its own: the image and, from 0x30'0000 to kLedgerGpa, one page of stacks for each vCPU; the
// page at 0x8000 while vCPUs start; 0xc0'0000 to 0xc4'0000 for page tables of memory above 4 GiB.
inline constexpr uint64_t kImageGpa = 0x10'0000;        // the PVH ELF, below kResultsGpa
inline constexpr uint64_t kResultsGpa = 0x20'0000;      // struct Results
inline constexpr uint64_t kLedgerGpa = 0x40'0000;       // kLedgerWords words, see ledger_word_gpa()
inline constexpr uint64_t kCodeGpa = 0x60'0000;         // code sites, see code_site_gpa()
inline constexpr uint64_t kDirtyGpa = 0x200'0000;       // 32 MiB: the dirty scenario rewrites from here up
inline constexpr uint64_t kMinMemoryBytes = 0x100'0000; // 16 MiB (dirty needs 32 MiB + what it rewrites)

inline constexpr uint32_t kMaxCpus = 256;

// ---- Scenarios: a bit mask; each vCPU runs a slice of every chosen one in turn -----------------------
inline constexpr uint32_t kGap = 1u << 0;    // largest TSC jump between two reads in a tight loop
inline constexpr uint32_t kLedger = 1u << 1; // all ledger words must be equal
inline constexpr uint32_t kCode = 1u << 2;   // call rewritten code; a result is old or new, never else
inline constexpr uint32_t kDirty = 1u << 3;  // rewrite memory
inline constexpr uint32_t kIo = 1u << 4;     // port and MMIO traffic with sequence numbers
inline constexpr uint32_t kIdle = 1u << 5;   // HLT with a periodic timer interrupt
inline constexpr uint32_t kAllScenarios = 0x3f;

// ---- Ledger ------------------------------------------------------------------------------------------
// kLedgerWords 64-bit words, no two in one cache line, spread over kLedgerPages pages. The host writes
// the same value to all of them in one stop. A stop may fall into a reader's pass, which then sees old
// words followed by new ones; a reader that sees the old value again after the new one has seen a torn update.
// So no update may bring back the value before the last: count up.
inline constexpr uint32_t kLedgerWords = 64;
inline constexpr uint32_t kLedgerPages = 8;
constexpr uint64_t ledger_word_gpa(uint32_t word) {
  return kLedgerGpa + uint64_t{word % kLedgerPages} * 0x1000 + uint64_t{word / kLedgerPages} * 0x1c0 + 8;
}

// ---- Code sites --------------------------------------------------------------------------------------
// Each site is the function `movabs $imm64, %rax; ret` (48 b8 <8 bytes> c3). The guest writes the sites
// at start-up with the value 0. The 8 immediate bytes straddle a page boundary at even sites and a
// cache-line boundary (inside a page) at odd ones. A legal value has all 8 bytes equal; the host rewrites
// all sites to one legal value in one stop. A caller that sees unequal bytes in a site, or an old
// value again after a new one in one pass over the sites, has seen a torn rewrite.
inline constexpr uint32_t kCodeSites = 16;
inline constexpr uint32_t kCodeSiteBytes = 11;
inline constexpr uint32_t kCodeImmediateOffset = 2;
constexpr uint64_t code_site_gpa(uint32_t site) {
  // Even sites end 5 bytes past a page boundary; odd ones straddle the line at +0x800.
  return kCodeGpa + uint64_t{site / 2} * 0x1000 + (site % 2 == 0 ? 0x1000 - 6 : 0x800 - 6);
}

// ---- Doorbell: the device behind the io scenario -------------------------------------------------------
// A vCPU writes its own sequence numbers 1, 2, 3, ...; the device counts every write that is not the last
// plus one. A read returns how many reads of that register the device has served for that vCPU, counted
// from 1; the guest counts every answer that is not the last plus one. A port and an MMIO register each
// keep their own sequences. The guest stores each counter right after the access: seen under a stop, the
// device is level with CpuResults or one ahead. Reading kDoorbellSignaturePort tells whether the device is there at
// all.
inline constexpr uint16_t kDoorbellSignaturePort = 0x5f0;  // 4-byte read: kDoorbellSignature
inline constexpr uint32_t kDoorbellSignature = 0x4c4c4542; // "BELL"
inline constexpr uint16_t kDoorbellPortBase = 0x5000;      // + 4 * cpu, 4-byte accesses
inline constexpr uint64_t kDoorbellMmioGpa = 0xd000'0000;  // + 0x40 * cpu
inline constexpr uint64_t kDoorbellMmioBytes = uint64_t{kMaxCpus} * 0x40;
inline constexpr uint32_t kDoorbellMmioWrite = 0x00; // 8-byte write: sequence number
inline constexpr uint32_t kDoorbellMmioRead = 0x08;  // 8-byte read: count of reads
inline constexpr uint32_t kDoorbellMmioRing = 0x10;  // 8-byte write: a job for the worker, see the mailbox

// ---- Mailbox: guest memory that a device writes by itself ------------------------------------------------
// A write of N to kDoorbellMmioRing makes the doorbell's worker thread write N to every word of that vCPU's
// mailbox, in order, some time later. The vCPU rings with N + 1 once all its words are N. The worker comes to rest
// between two jobs: under a stop all words of a mailbox are equal, and stay as they are; else a device wrote to a
// held guest.
inline constexpr uint64_t kMailboxGpa = 0x50'0000; // + 0x400 * cpu
inline constexpr uint32_t kMailboxWords = 16;      // 64-bit words, one a cache line
constexpr uint64_t mailbox_word_gpa(uint32_t cpu, uint32_t word) {
  return kMailboxGpa + uint64_t{cpu} * 0x400 + uint64_t{word} * 0x40;
}
static_assert(mailbox_word_gpa(kMaxCpus, 0) <= kCodeGpa);

// ---- CPU device: vCPUs that come and go --------------------------------------------------------------
// A 4-byte register for each possible vCPU, whose number is its APIC ID. Read: the bits below. The host sets or
// clears kCpuWanted and then raises kCpuGsi (an edge). The guest starts a wanted vCPU by INIT and SIPI. One that
// is no longer wanted leaves its work, writes kCpuGone to its register and halts with interrupts off; the host
// takes it out of the machine then, and gives it back only in the state that waits for INIT.
inline constexpr uint16_t kCpuSignaturePort = 0x620;  // 4-byte read: kCpuSignature
inline constexpr uint32_t kCpuSignature = 0x53555043; // "CPUS"
inline constexpr uint16_t kCpuPossiblePort = 0x624;   // 4-byte read: how many vCPUs there may be
inline constexpr uint16_t kCpuPortBase = 0x6000;      // + 4 * cpu, 4-byte accesses
inline constexpr uint32_t kCpuPresent = 1;            // read: it exists
inline constexpr uint32_t kCpuWanted = 2;             // read: it is to work
inline constexpr uint32_t kCpuGone = 1;               // write: it runs nothing any more
inline constexpr uint32_t kCpuGsi = 10;               // edge interrupt

// ---- Power device: power-off, reset and the power button ---------------------------------------------
inline constexpr uint16_t kPowerPort = 0x600;       // 4-byte accesses
inline constexpr uint32_t kPowerOff = 1;            // write: power off, the VMM ends with status 0
inline constexpr uint32_t kPowerReset = 2;          // write: reset
inline constexpr uint32_t kPowerCrash = 3;          // write: the guest gives up, see Results::crash
inline constexpr uint32_t kPowerButtonClear = 0x10; // write: acknowledge the button
inline constexpr uint32_t kPowerStatusButton = 1;   // read: bit 0, the button was pressed
inline constexpr uint32_t kPowerGsi = 9;            // edge interrupt raised by the button

// ---- Results -----------------------------------------------------------------------------------------
inline constexpr uint64_t kMagic = 0x31'45'42'4f'52'50'56'53; // "SVPROBE1", little endian
inline constexpr uint32_t kAbiVersion = 2;
inline constexpr uint32_t kGapBuckets = 48; // bucket b counts jumps of [2^b, 2^(b+1)) TSC ticks

enum class CpuPhase : uint32_t { kOffline = 0, kStarting = 1, kRunning = 2, kPoweredOff = 3 };

// One vCPU's counters. Only that vCPU writes it, so no field needs an atomic access in the guest; the host
// reads it under a stop, or live where a slightly old value does no harm.
struct alignas(64) CpuResults {
  uint32_t phase; // CpuPhase
  uint32_t apic_id;
  uint64_t slices;           // scenario slices done: a heartbeat
  uint64_t epoch;            // the Control::epoch these counters belong to
  uint64_t timer_interrupts; // periodic LAPIC timer interrupts taken
  uint64_t gap_max_ticks;
  uint64_t gap_reads;
  uint64_t gap_histogram[kGapBuckets];
  uint64_t ledger_reads; // passes over all ledger words
  uint64_t ledger_torn;
  uint64_t ledger_last; // last value seen
  uint64_t code_calls;  // passes over all code sites
  uint64_t code_torn;
  uint64_t code_last;
  uint64_t dirty_pages;    // pages rewritten
  uint64_t io_port_writes; // last sequence number written
  uint64_t io_port_reads;  // last count read
  uint64_t io_mmio_writes;
  uint64_t io_mmio_reads;
  uint64_t io_bad;         // answers that were not the last plus one
  uint64_t idle_wakeups;   // returns from HLT
  uint64_t ledger_spanned; // passes an atomic update fell into: old words, then new ones, never old again
  uint64_t code_spanned;   // the same of passes over the code sites
  uint64_t mail_rung;      // last number rung for
  uint64_t mail_seen;      // last number that all words of the mailbox were seen with
  uint64_t mail_bad;       // words that went back, or beyond what was rung for
  uint64_t starts;         // times this vCPU came up since boot
};

// Written by the host, read by the guest.
struct alignas(64) Control {
  uint32_t scenarios; // mask; the guest fills it from its command line, the host may change it
  uint32_t reserved;
  uint64_t epoch;       // raised by the host: each vCPU then zeroes its gap, ledger, code and dirty
                        // counters (io sequences go on) and copies the epoch to CpuResults::epoch
  uint64_t dirty_bytes; // size of the rewritten area (default 64 MiB, cut to what memory holds)
  uint64_t dirty_rate;  // bytes per second over all vCPUs, 0: as fast as possible
};

inline constexpr uint32_t kCrashAsked = 0xffff'ffff; // boot_fault=crash: no exception caused it

struct alignas(4096) Results {
  uint64_t magic; // kMagic, written last during start-up: all else here is valid, the other vCPUs are told to start
  uint32_t abi_version;
  uint32_t cpus_present;     // vCPUs the guest was told of; with the CPU device, those wanted now
  uint32_t cpus_running;     // vCPUs that reached CPL 3 and have not gone since
  uint32_t doorbell_present; // 1 where the doorbell answered its signature
  uint64_t memory_bytes;     // RAM found in the memory map
  uint64_t tsc_hz;           // as measured or told by CPUID, 0 where unknown
  Control control;
  struct alignas(64) {
    uint32_t cpu;
    uint32_t vector; // the exception, or kCrashAsked
    uint64_t error_code;
    uint64_t rip;
    uint64_t cr2;
  } crash; // valid after kPowerCrash was written
  CpuResults cpu[kMaxCpus];
};

inline constexpr uint64_t cpu_results_gpa(uint32_t cpu) {
  return kResultsGpa + offsetof(Results, cpu) + uint64_t{cpu} * sizeof(CpuResults);
}
static_assert(kResultsGpa + sizeof(Results) <= kLedgerGpa);

} // namespace stopvisor::probe
