// SPDX-License-Identifier: Apache-2.0
// How a vCPU gets from its first instruction to CPL 3 in 64-bit mode: the PVH entry of the boot processor
// and the real-mode trampoline of the others, which meet in start64.
//
// This is CPL 0 code, which some KVMs emulate at a microsecond an instruction, so it does the least
// possible: whatever can wait (descriptors, APIC, memory map) is done in C++ at CPL 3.
#include "guest/layout.h"

// ---- PVH: "Xen" note 18, XEN_ELFNOTE_PHYS32_ENTRY ------------------------------------------------------
        .section .note.Xen, "a", @note
        .balign 4
        .long   4, 8, 18
        .asciz  "Xen"
        .quad   pvh_entry

        .text
        .code32
        .globl  pvh_entry
pvh_entry:                              // 32-bit protected mode, no paging; EBX: hvm_start_info
        cld
        movl    $1, %eax                // CPUID takes EBX away
        movl    %ebx, %ebp
        cpuid
        btl     $21, %ecx
        setc    probe_x2apic
        lgdt    gdt_pointer
        movl    $PROBE_CR4, %eax
        movl    %eax, %cr4
        movl    $probe_pml4, %eax
        movl    %eax, %cr3
        movl    $0xc0000080, %ecx       // EFER
        xorl    %edx, %edx
        movl    $PROBE_EFER, %eax
        wrmsr
        movl    $PROBE_CR0, %eax
        movl    %eax, %cr0
        ljmp    $PROBE_KERNEL_CS, $boot_cpu64

// ---- Application processors: copied to PROBE_TRAMPOLINE_GPA --------------------------------------------
        .code16
        .globl  probe_trampoline, probe_trampoline_end
probe_trampoline:                       // real mode, CS = PROBE_TRAMPOLINE_GPA / 16, IP = 0
        cli
        lgdtl   %cs:(trampoline_gdt_pointer - probe_trampoline)
        movl    $PROBE_CR4, %eax
        movl    %eax, %cr4
        movl    $probe_pml4, %eax
        movl    %eax, %cr3
        movl    $0xc0000080, %ecx
        xorl    %edx, %edx
        movl    $PROBE_EFER, %eax
        wrmsr
        movl    $PROBE_CR0, %eax        // protection and paging at once: straight to long mode
        movl    %eax, %cr0
        ljmpl   $PROBE_KERNEL_CS, $application_cpu64
        .balign 4
        .word   0
trampoline_gdt_pointer:
        .word   PROBE_GDT_BYTES - 1
        .long   probe_gdt
        .balign 8
probe_trampoline_end:

// ---- 64-bit mode ---------------------------------------------------------------------------------------
        .code64
boot_cpu64:
        movl    %ebp, %esi              // second argument: hvm_start_info
        movl    $probe_boot_cpu, %r12d
        jmp     start64
application_cpu64:
        movl    $probe_application_cpu, %r12d
start64:
        movl    $PROBE_KERNEL_DS, %eax
        movl    %eax, %ss
        cmpb    $0, probe_x2apic(%rip)
        je      1f
        movl    $0x1b, %ecx             // IA32_APIC_BASE: switch to x2APIC
        rdmsr
        orl     $0xc00, %eax
        wrmsr
        movl    $0x802, %ecx            // x2APIC ID
        rdmsr
        jmp     2f
1:      movl    $0xfee00020, %eax       // xAPIC ID
        movl    (%rax), %eax
        shrl    $24, %eax
2:      cmpl    $PROBE_MAX_CPUS, %eax
        jae     park
        movl    %eax, %edi
        shll    $PROBE_CPU_BLOCK_SHIFT, %edi
        addl    $PROBE_CPU_BLOCKS_GPA, %edi // first argument: this vCPU's CpuBlock
        shll    $4, %eax
        addl    $PROBE_TSS_SELECTOR, %eax
        ltr     %ax
        leaq    PROBE_USER_STACK_TOP(%rdi), %rsp
        lidt    idt_pointer(%rip)
        movq    %rsp, %rax
        pushq   $PROBE_USER_DS
        pushq   %rax
        pushq   $PROBE_USER_RFLAGS
        pushq   $PROBE_USER_CS
        pushq   %r12
        iretq

        .globl  probe_park
probe_park:
park:   cli
        hlt
        jmp     park

// ---- Task states: where each vCPU's CPL 0 stack is, and the port map (Intel SDM vol. 3, 8.7; vol. 1, 19.5.2)
        .section .tasks, "aw", @progbits        // probe.ld puts it at PROBE_TASKS_GPA
        .set    cpu, 0
        .rept   PROBE_MAX_CPUS
        .long   0
        .quad   PROBE_CPU_BLOCKS_GPA + cpu * PROBE_CPU_BLOCK_BYTES + PROBE_KERNEL_STACK_TOP
        .fill   11, 8, 0
        .word   0, (PROBE_MAX_CPUS - cpu) * PROBE_TASK_BYTES
        .set    cpu, cpu + 1
        .endr
        .fill   PROBE_PORT_MAP_BYTES, 1, 0
        .byte   0xff

// ---- Descriptor tables; gates.cpp fills in the gates -----------------------------------------------------
        .data
        .balign 8
        .globl  probe_gdt
probe_gdt:
        .quad   0
        .quad   0
        .quad   0x00af9b000000ffff      // 0x10 kernel code, 64-bit
        .quad   0x00cf93000000ffff      // 0x18 kernel data
        .quad   0
        .quad   0x00cff3000000ffff      // 0x28 user data
        .quad   0x00affb000000ffff      // 0x30 user code, 64-bit
        .quad   0
        // Available 64-bit task states (Intel SDM vol. 3, 8.2.3), all below 16 MiB; each reaches to the port map's end.
        .set    cpu, 0
        .rept   PROBE_MAX_CPUS
        .set    base, PROBE_TASKS_GPA + cpu * PROBE_TASK_BYTES
        .set    limit, (PROBE_MAX_CPUS - cpu) * PROBE_TASK_BYTES + PROBE_PORT_MAP_BYTES
        .quad   limit + (base << 16) + (0x89 << 40), 0
        .set    cpu, cpu + 1
        .endr
        .word   0
gdt_pointer:
        .word   PROBE_GDT_BYTES - 1
        .quad   probe_gdt
        .balign 8
        .skip   6
idt_pointer:
        .word   256 * 16 - 1
        .quad   probe_idt

        .globl  probe_x2apic
probe_x2apic:
        .byte   0

        .bss
        .balign 16
        .globl  probe_idt
probe_idt:
        .skip   256 * 16

        .section .note.GNU-stack, "", @progbits
