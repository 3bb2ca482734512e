// SPDX-License-Identifier: Apache-2.0
// What runs at CPL 0 after start-up: exceptions, interrupts, and the few kernel calls CPL 3 code needs.
//
// Every vCPU's stacks lie in its CpuBlock, so a handler finds the block by masking its stack pointer;
// no per-vCPU segment base is needed. Handlers are short because each instruction may be emulated.
#include "guest/layout.h"

        .text
        .code64

// ---- Exceptions: none is expected, each ends in probe_crash(frame, cr2, block) --------------------------
        .balign 16
        .globl  probe_exceptions
probe_exceptions:                       // 32 stubs, 16 bytes each
        .set    vector, 0
        .rept   32
        .if     vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30
        .balign 16
        .else
        .balign 16
        pushq   $0
        .endif
        pushq   $vector
        jmp     crash
        .set    vector, vector + 1
        .endr
        .balign 16
crash:
        movq    %rsp, %rdi
        movq    %cr2, %rsi
        movq    %rsp, %rdx
        andq    $-PROBE_CPU_BLOCK_BYTES, %rdx
        cld
        call    probe_crash

// ---- Interrupts, each for both kinds of local APIC -----------------------------------------------------
        .macro  interrupt name, x2apic, action:vararg
        .globl  \name
        .balign 16
\name:
        pushq   %rax
        movq    %rsp, %rax
        andq    $-PROBE_CPU_BLOCK_BYTES, %rax
        \action
        .if     \x2apic
        pushq   %rcx
        pushq   %rdx
        movl    $0x80b, %ecx            // end of interrupt
        xorl    %eax, %eax
        xorl    %edx, %edx
        wrmsr
        popq    %rdx
        popq    %rcx
        .else
        movl    $0xfee000b0, %eax
        movl    $0, (%rax)
        .endif
        popq    %rax
        iretq
        .endm

        .macro  count_timer
        movq    PROBE_BLOCK_RESULTS(%rax), %rax
        incq    PROBE_RESULTS_TIMER_INTERRUPTS(%rax)
        .endm
        .macro  note_button
        movb    $1, PROBE_BLOCK_BUTTON(%rax)
        .endm
        .macro  note_hotplug
        movb    $1, PROBE_BLOCK_HOTPLUG(%rax)
        .endm

        interrupt probe_timer_x2apic, 1, count_timer
        interrupt probe_timer_xapic, 0, count_timer
        interrupt probe_button_x2apic, 1, note_button
        interrupt probe_button_xapic, 0, note_button
        interrupt probe_hotplug_x2apic, 1, note_hotplug
        interrupt probe_hotplug_xapic, 0, note_hotplug
        interrupt probe_wake_x2apic, 1  // who sends it has left a note already
        interrupt probe_wake_xapic, 0

        .globl  probe_spurious
        .balign 16
probe_spurious:
        iretq

// ---- Kernel calls: number in RAX, see kernel_call.h ------------------------------------------------------
// SYSCALL stays at CPL 3 and INT n is undefined on KVMs that emulate CPL 0; an exception works everywhere.
// So the call is an undefined instruction at one known address.
        .globl  probe_kernel_call
        .balign 16
probe_kernel_call:
        ud2
        ret

        .balign 16
        .globl  probe_undefined
probe_undefined:                        // the gate of #UD
        cmpq    $probe_kernel_call, (%rsp)
        jne     probe_exceptions + 16 * 6
        addq    $2, (%rsp)
        jmp     *calls(, %rax, 8)

call_idle:
        movq    %rsp, %rcx
        andq    $-PROBE_CPU_BLOCK_BYTES, %rcx
        cmpl    $0, PROBE_BLOCK_NOTES(%rcx)
        jne     1f                      // came between the caller's last look and here
        sti                             // takes effect after HLT began: no wake-up is lost
        hlt
        cli
1:      iretq
call_write_msr:                         // RDI: register, RSI: low half, RDX: high half
        movl    %edi, %ecx
        movl    %esi, %eax
        wrmsr
        iretq
call_read_msr:                          // RDI: register; RAX, RDX: value
        movl    %edi, %ecx
        rdmsr
        iretq
call_cpuid:                             // RDI: leaf, RSI: subleaf, R8: uint32_t[4] for EAX to EDX
        pushq   %rbx
        movl    %edi, %eax
        movl    %esi, %ecx
        cpuid
        movl    %eax, (%r8)
        movl    %ebx, 4(%r8)
        movl    %ecx, 8(%r8)
        movl    %edx, 12(%r8)
        popq    %rbx
        iretq
call_enable_interrupts:
        orl     $0x200, 16(%rsp)
        iretq
call_write_last:                        // RDI: port, RSI: value
        movl    %edi, %edx
        movl    %esi, %eax
        outl    %eax, %dx
        jmp     probe_park
call_triple_fault:
        lidt    no_idt(%rip)
        ud2
call_unemulatable:                      // KVM's emulator has no CMPXCHG16B
        subq    $24, %rsp               // 40 bytes of frame: now aligned
        lock cmpxchg16b (%rsp)
        addq    $24, %rsp
        iretq

        .section .rodata
        .balign 8
calls:
        .quad   call_idle, call_write_msr, call_read_msr, call_cpuid
        .quad   call_enable_interrupts, call_triple_fault, call_unemulatable
        .quad   probe_park, call_write_last
        .balign 8
        .skip   6
no_idt: .word   0
        .quad   0

        .section .note.GNU-stack, "", @progbits
