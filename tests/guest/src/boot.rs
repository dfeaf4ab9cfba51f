//! From the PVH entry point to ring 3: the only ring-0 code of the guest.
//!
//! In: 32-bit protected mode without paging, `ebx` = `hvm_start_info` (vCPU 0), or a start-up IPI (other
//! vCPUs). Out: `ring3_main(start_info, vcpu)` in 64-bit ring 3 with all I/O ports open, interrupts off, low
//! 4 GiB identity mapped. Never: anything that could as well run in ring 3; some hosts emulate ring 0 at a
//! millionth of native speed.

use core::arch::global_asm;

/// The most vCPUs that there are stacks and task state segments for.
pub const MAX_VCPUS: usize = 8;
/// Physical address that the other vCPUs start at: a page below 1 MiB that nothing else uses after boot.
pub const TRAMPOLINE: u64 = 0x9000;

// Selectors follow Linux (ring 3: code 0x33, data 0x2b): hosts that run guests by page-table virtualisation
// only run these at native speed, and they drop IOPL, so that the I/O bitmap opens the ports as well.
// Everything that can be a table is one: a table costs no emulated instruction.
global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18                  /* name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad pvh_start

    .section .boot, "ax"
    .code32
    .globl pvh_start
pvh_start:
    cli
    movl %ebx, %edi
    xorl %ebp, %ebp
enter_long_mode:                    /* ebp = vCPU, edi = start info */
    lgdt gdt_pointer
    movl $0x620, %eax               /* PAE, OSFXSR, OSXMMEXCPT */
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx          /* EFER.LME */
    xorl %edx, %edx
    movl $0x100, %eax
    wrmsr
    movl $0x80000033, %eax          /* PG, NE, ET, MP, PE */
    movl %eax, %cr0
    ljmp $0x10, $long_mode

    .code64
long_mode:
    movl $0x2b, %eax
    movl %eax, %ds
    movl %eax, %es
    lidt idt_pointer
    movl $0x40000000, %eax          /* kvmclock, if this is KVM and has it (CPUID is what KVM says in ring 0 only) */
    cpuid
    cmpl $0x4b4d564b, %ebx
    jne no_clock
    movl $0x40000001, %eax
    cpuid
    testl $8, %eax
    jz no_clock
    testl %ebp, %ebp                /* the first vCPU's is enough */
    jnz no_clock
    movl $0x4b564d01, %ecx
    movl $kvmclock + 1, %eax
    xorl %edx, %edx
    wrmsr
no_clock:
    movl %ebp, %eax                 /* base address into the TSS descriptor */
    shll $7, %eax
    addl $task_states, %eax
    movl %ebp, %ecx
    shll $4, %ecx
    movw %ax, gdt+0x42(%rcx)
    shrl $16, %eax
    movb %al, gdt+0x44(%rcx)
    movb %ah, gdt+0x47(%rcx)
    leal 0x40(%rcx), %eax
    ltr %ax
    movl %ebp, %eax
    shll $12, %eax
    leal ring0_stacks+4096(%rax), %esp
    movl %ebp, %eax
    shll $16, %eax
    leal ring3_stacks+65528(%rax), %eax
    movl %ebp, %esi
    pushq $0x2b                     /* ss */
    pushq %rax                      /* rsp, as after a call */
    pushq $0x3002                   /* rflags: IOPL 3 */
    pushq $0x33                     /* cs */
    pushq $ring3_main
    iretq

    /* An exception goes on in ring 3: exception_report(vector, error, rip, cr2, rsp). */
    .balign 16
    .globl exception_stubs
exception_stubs:
    .irp vector, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    .balign 16
    .if ((1 << \vector) & 0x227d00) == 0
    pushq $0                        /* vectors without an error code: not 8, 10 to 14, 17 and 21 */
    .endif
    pushq $\vector
    jmp exception_common
    .endr
    .balign 16
exception_common:
    popq %rdi
    popq %rsi
    movq 0(%rsp), %rdx
    movq %cr2, %rcx
    movq 24(%rsp), %r8
    movq $exception_report, %rax
    movq %rax, 0(%rsp)
    movq %r8, %rax
    subq $136, %rax                 /* below the red zone */
    andq $-16, %rax
    subq $8, %rax
    movq %rax, 24(%rsp)
    iretq

    /* Copied to TRAMPOLINE; every reference in it is absolute or relative to its own start. */
    .code16
    .globl ap_trampoline, ap_trampoline_end
ap_trampoline:
    cli
    movw %cs, %ax
    movw %ax, %ds
    lgdtl ap_gdt_pointer - ap_trampoline
    movl $0x11, %eax
    movl %eax, %cr0
    ljmpl $0x08, $ap_protected
    .balign 4
ap_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
ap_trampoline_end:
    .code32
ap_protected:
    movw $0x18, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl ap_number, %ebp
    xorl %edi, %edi
    jmp enter_long_mode
    .code64

    .section .data.tables, "aw"
    .balign 4096
    .globl pml4
pml4:
    .quad pdpt + 0x27               /* present, writable, user, accessed */
    .fill 511, 8, 0
pdpt:
    .quad page_directories + 0x27, page_directories + 0x1027, page_directories + 0x2027, page_directories + 0x3027
    .fill 508, 8, 0
page_directories:                   /* 4 GiB in pages of 2 MiB, accessed and dirty */
    .set frame, 0
    .rept 2048
    .quad (frame << 21) + 0xe7
    .set frame, frame + 1
    .endr
    .globl idt
idt:
    .fill 512, 8, 0
task_states:                        /* 128 bytes each, rsp0 at 4; all share the I/O bitmap behind the last */
    .set cpu, 0
    .rept 8
    .long 0
    .quad ring0_stacks + 4096 * (cpu + 1)
    .fill 90, 1, 0
    .word 128 * (8 - cpu)
    .fill 24, 1, 0
    .set cpu, cpu + 1
    .endr
    .fill 8192, 1, 0                /* all ports allowed */
    .fill 8, 1, 0xff
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff        /* 08 ring 0 code, 32 bit */
    .quad 0x00af9b000000ffff        /* 10 ring 0 code, 64 bit */
    .quad 0x00cf93000000ffff        /* 18 ring 0 data */
    .quad 0x00cffb000000ffff        /* 20 ring 3 code, 32 bit */
    .quad 0x00cff3000000ffff        /* 28 ring 3 data */
    .quad 0x00affb000000ffff        /* 30 ring 3 code, 64 bit */
    .quad 0
    .set cpu, 0
    .rept 8                         /* 40 + 16 * vCPU: TSS, base filled in above */
    .quad 0x0000890000000000 + 128 * (8 - cpu) + 8192, 0
    .set cpu, cpu + 1
    .endr
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
    .balign 8
idt_pointer:
    .word 32 * 16 - 1
    .quad idt
    .balign 64
    .globl kvmclock
kvmclock:                           /* written by KVM */
    .fill 64, 1, 0
    .globl ap_number
ap_number:
    .long 0

    .section .stacks, "aw", @nobits
    .balign 4096
ring0_stacks:
    .skip 8 * 4096
ring3_stacks:
    .skip 8 * 65536
    "#,
    options(att_syntax)
);
