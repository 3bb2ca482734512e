// SPDX-License-Identifier: Apache-2.0
// A small guest that looks like a running Linux kernel to who reads its memory: page tables, image, tables, tasks.
#pragma once

#include <optional>

#include "tests/unit/linux/btf_builder.h"
#include "vmm/guest_memory.h"
#include "vmm/linux/linux_kernel.h"

namespace stopvisor::vmm::testing {

class FakeLinux {
public:
  // Change before build().
  uint64_t slide = 0x1d00'0000;
  KallsymsBuilder kallsyms;
  std::string banner = "Linux version 6.1.0-56-fake (somebody) #1 SMP\n";
  std::string vmcoreinfo = "OSRELEASE=6.1.0-56-fake\nBUILD-ID=0102030405060708\nKERNELOFFSET=1d000000\n";
  Buffer btf = types();
  bool with_kallsyms = true;
  uint64_t cr4 = 0x20; // 0x1020: five levels

  static constexpr uint32_t kCpus = 2;
  static constexpr uint64_t kMemoryBytes = 16 << 20;
  // Guest physical:
  static constexpr uint64_t kTables = 0x10'0000;  // a page table each page
  static constexpr uint64_t kUserTop = 0x11'1000; // of a process, as page table isolation makes it: no kernel
  static constexpr uint64_t kProcessTop = kUserTop & ~0x1000ULL;
  static constexpr uint64_t kImage = 0x40'0000;
  static constexpr uint64_t kPerCpu = 0x80'0000;
  static constexpr uint64_t kTasks = 0xa0'0000;
  static constexpr uint64_t kVmcoreInfo = 0xb0'0000;
  // Offsets in the image:
  static constexpr uint64_t kBanner = 0x1'0000, kNotes = 0x1'1000, kData = 0x2'0000, kTopTable = 0x3'0000,
                            kBtf = 0x4'0000, kTablesOfSymbols = 0x8'0000, kImageBytes = 2 << 20;
  static constexpr uint64_t kInitTask = 0x800;                         // in kData
  static constexpr uint64_t kLink = 48;                                // in a task
  static constexpr uint64_t kCurrentTask = 0x1'fb80, kApicId = 0x1000; // per CPU
  static constexpr uint64_t kDirectMap = 0xffff'8880'0000'0000;

  [[nodiscard]] uint64_t text() const { return kUsualTextAddress + slide; }

  [[nodiscard]] static Buffer types() {
    BtfBuilder btf;
    const uint32_t int_type = btf.integer("int", 4);
    const uint32_t long_type = btf.integer("unsigned long", 8);
    const uint32_t char_type = btf.integer("char", 1);
    const uint32_t name = btf.array(char_type, 16);
    const uint32_t pid = btf.add(8, "pid_t", int_type); // a typedef
    const uint32_t inner = btf.structure("", 16, {{"padding", long_type, 0}, {"tgid", pid, 64}});
    const uint32_t list = btf.structure("list_head", 16, {{"next", long_type, 0}, {"prev", long_type, 64}});
    btf.structure("task_struct", 72,
                  {{"state", long_type, 0},
                   {"pid", pid, 64},
                   {"", inner, 128},
                   {"comm", name, 256},
                   {"tasks", list, 384},
                   {"mm", long_type, 512}});
    const uint32_t tables = btf.structure("", 16, {{"flags", long_type, 0}, {"pgd", long_type, 64}});
    btf.structure("mm_struct", 16, {{"", tables, 0}});
    btf.structure("timekeeper", 32, {{"before", long_type, 0}, {"ktime_sec", long_type, 128}});
    btf.variable("x86_cpu_to_apicid", btf.integer("short unsigned int", 2));
    return btf.build();
  }

  // All symbols but the fillers, as the kernel has them.
  [[nodiscard]] std::vector<std::pair<std::string, uint64_t>> symbols() const {
    return {{"_text", text()},
            {"linux_banner", text() + kBanner},
            {"__start_notes", text() + kNotes},
            {"__stop_notes", text() + kNotes + 44},
            {"nr_cpu_ids", text() + kData},
            {"panic_cpu", text() + kData + 8},
            {"shadow_timekeeper", text() + kData + 0x10},
            {"vmcoreinfo_data", text() + kData + 0x40},
            {"__per_cpu_offset", text() + kData + 0x100},
            {"init_task", text() + kData + kInitTask},
            {"init_top_pgt", text() + kTopTable},
            {"__start_BTF", text() + kBtf},
            {"__stop_BTF", text() + kBtf + btf.size()},
            {"_end", text() + kImageBytes - 0x1000},
            {"current_task", per_cpu_start() + kCurrentTask},
            {"x86_cpu_to_apicid", per_cpu_start() + kApicId}};
  }
  // Where per-CPU variables are linked to: at 0, or (Linux 6.15 on) in the image.
  [[nodiscard]] uint64_t per_cpu_start() const { return kallsyms.absolute_percpu ? 0 : text() + 0x10'0000; }

  // Puts everything in place. Once.
  void build() {
    auto created = GuestMemory::create(kMemoryBytes, MemoryBacking::kAnonymous);
    memory_.emplace(*std::move(created));
    map();
    put_image();
    for (uint32_t cpu = 0; cpu < kCpus; ++cpu)
      put_cpu(cpu);
  }

  [[nodiscard]] GuestMemory& memory() { return *memory_; }
  [[nodiscard]] const GuestMemory& memory() const { return *memory_; }
  // In the kernel, with a process' page tables.
  [[nodiscard]] Registers registers(uint32_t cpu = 0) const {
    Registers registers;
    registers.cr0 = 0x8000'0001;
    registers.cr3 = kProcessTop;
    registers.cr4 = cr4;
    registers.efer = 0xd00;
    registers.gs.base = per_cpu(cpu) - per_cpu_start();
    registers.rip = text() + 0x25;
    return registers;
  }
  // In a process, whose page tables do not have the kernel.
  [[nodiscard]] Registers user_registers() const {
    Registers registers = this->registers();
    registers.cr3 = kUserTop;
    registers.gs.base = 0;
    registers.ss.dpl = 3;
    return registers;
  }
  [[nodiscard]] std::vector<Registers> all_registers() const { return {registers(0), registers(1)}; }

  template <typename T>
  void put(uint64_t gpa, T value) {
    (void)memory_->write(Gpa{gpa}, std::as_bytes(std::span(&value, 1)));
  }
  void put_bytes(uint64_t gpa, std::span<const std::byte> bytes) { (void)memory_->write(Gpa{gpa}, bytes); }
  void put_text(uint64_t gpa, const std::string& text) { put_bytes(gpa, std::as_bytes(std::span(text))); }

  [[nodiscard]] static uint64_t per_cpu(uint32_t cpu) { return kDirectMap + kPerCpu + cpu * 0x4'0000ULL; }

private:
  static constexpr uint64_t kWritable = 3, kLargePage = 0x83;

  // Tables: the page after kTables has the direct map's, the next ones the image's; above them one more level if
  // wanted.
  void map() {
    const uint64_t direct_3 = kTables, direct_2 = kTables + 0x1000, image_3 = kTables + 0x2000,
                   image_2 = kTables + 0x3000;
    put(direct_3, direct_2 | kWritable);
    for (uint64_t i = 0; i < kMemoryBytes >> 21; ++i)
      put(direct_2 + i * 8, i << 21 | kLargePage);
    put(image_3 + 510ULL * 8, image_2 | kWritable);
    put(image_2 + (text() >> 21 & 511) * 8, kImage | kLargePage);
    for (const uint64_t top : {kProcessTop, kImage + kTopTable}) {
      const bool five = (cr4 & 0x1000) != 0;
      const uint64_t fourth = five ? (top == kProcessTop ? kTables + 0x4000 : kTables + 0x5000) : top;
      put(fourth + ((kDirectMap >> 39) & 511) * 8, direct_3 | kWritable);
      put(fourth + 511ULL * 8, image_3 | kWritable);
      if (five) {
        put(top + 511ULL * 8, fourth | kWritable);
        put(top + ((kDirectMap >> 48) & 511) * 8, fourth | kWritable);
      }
    }
  }

  void put_image() {
    put_text(kImage + kBanner, banner);
    Buffer notes;
    for (const uint32_t number : {4U, 4U, 0x101U}) // another note first: "XYZ"
      append_number(notes, number);
    append_number(notes, uint64_t{0x1111'2222'005a'5958});
    for (const uint32_t number : {4U, 8U, 3U})
      append_number(notes, number);
    append_number(notes, uint32_t{0x00554e47}); // "GNU"
    append_number(notes, uint64_t{0x0807'0605'0403'0201});
    put_bytes(kImage + kNotes, notes);
    put_bytes(kImage + kBtf, btf);
    put(kImage + kData, kCpus);
    put(kImage + kData + 8, int32_t{-1});
    put(kImage + kData + 0x10 + 16, uint64_t{77}); // ktime_sec
    put(kImage + kData + 0x40, kDirectMap + kVmcoreInfo);
    // The list of processes: 100, which has an address space, 101, which is a kernel thread, and round again.
    const uint64_t first = kImage + kData + kInitTask;
    put(first + kLink, kDirectMap + kTasks + kLink);
    put(kTasks + kLink, kDirectMap + kTasks + 0x1000 + kLink);
    put(kTasks + 0x1000 + kLink, text() + kData + kInitTask + kLink);
    put(kTasks + 64, kDirectMap + kTasks + 0x2000);
    put(kTasks + 0x2000 + 8, kDirectMap + kProcessTop);
    put_text(kVmcoreInfo, vmcoreinfo);
    for (const auto& [name, address] : symbols())
      kallsyms.add(address,
                   name == "current_task" || name == "x86_cpu_to_apicid" ? 'A'
                   : name == "_text"                                     ? 'T'
                                                                         : 'D',
                   name);
    for (uint64_t i = 1; i < 600; ++i)
      kallsyms.add(text() + i * 32, 'T', "function_" + std::to_string(i));
    kallsyms.add(text() + 0x7000, 't', "twin");
    kallsyms.add(text() + 0x7100, 't', "twin");
    kallsyms.add(text() + 0x7200, 't', "long_" + std::string(300, 'x'));
    if (with_kallsyms)
      put_bytes(kImage + kTablesOfSymbols, kallsyms.build(text()));
  }

  void put_cpu(uint32_t cpu) {
    const uint64_t variables = kPerCpu + cpu * 0x4'0000ULL, task = kTasks + cpu * 0x1000ULL;
    put(kImage + kData + 0x100 + cpu * 8ULL, per_cpu(cpu) - per_cpu_start());
    put(variables + kCurrentTask, kDirectMap + task);
    put(variables + kApicId, static_cast<uint16_t>(cpu));
    put(task + 8, int32_t(cpu + 101));
    put(task + 24, int32_t(cpu + 100));
    put_text(task + 32, "worker/" + std::to_string(cpu));
  }

  std::optional<GuestMemory> memory_;
};

} // namespace stopvisor::vmm::testing
