// SPDX-License-Identifier: Apache-2.0
// The identity map of the first 4 GiB, as data of the image.
//
// Building tables at run time costs thousands of instructions at CPL 0, where some KVMs emulate each one;
// the loader copies these for free. Everything is user-accessible and writable: the scenarios run at CPL 3.
// Accessed and dirty bits are set beforehand, so that no walk has to write them.
#include "guest/layout.h"

#define TABLE 0x27      // present, writable, user, accessed
#define PAGE_2M 0xe7    // the same, dirty, 2 MiB page
#define PAGE_4K 0x67    // the same, dirty, 4 KiB page
#define UNCACHED 0x18   // PCD, PWT

        .section .data.tables, "aw", @progbits
        .balign 4096
        .globl  probe_pml4
probe_pml4:
        .quad   probe_pdpt + TABLE
        .fill   511, 8, 0

        .globl  probe_pdpt
probe_pdpt:
        .quad   directories + TABLE
        .quad   directories + 0x1000 + TABLE
        .quad   directories + 0x2000 + TABLE
        .quad   directories + 0x3000 + TABLE
        .fill   508, 8, 0       // main.cpp fills these where the memory map says so

directories:
        .set    page, 0
        .rept   2048
        .if     page == 0x600000                                // the code sites: 4 KiB pages
        .quad   code_table + TABLE
        .elseif page == 0xd0000000 || (page >= 0xfec00000 && page < 0xff000000) // doorbell, I/O APIC, APIC
        .quad   page + PAGE_2M + UNCACHED
        .else
        .quad   page + PAGE_2M
        .endif
        .set    page, page + 0x200000
        .endr

code_table:
        .set    page, 0x600000
        .rept   512
        .quad   page + PAGE_4K
        .set    page, page + 0x1000
        .endr

        .section .note.GNU-stack, "", @progbits
