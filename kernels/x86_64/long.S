/* Goes up to 64-bit mode and prints a 64-bit number there.
 *
 * Shows: the four steps of AMD APM volume 2, 14.6 "Enabling and Activating Long Mode": page tables and CR3,
 * CR4.PAE, EFER.LME, CR0.PG; then a far jump into a 64-bit code segment.  The page tables map the first 2 MiB,
 * where this guest stands, to themselves: one entry in each of three tables. */

#include "pvh.inc"
#include "serial.inc"

	.set CODE64, 0x08
	.set CR0_PG, 1 << 31
	.set CR4_PAE, 1 << 5
	.set MSR_EFER, 0xc0000080
	.set EFER_LME, 1 << 8
	.set PAGE_PRESENT_WRITABLE, 3
	.set PAGE_LARGE, 1 << 7

	.bss
	.balign	4096
pml4:	.skip	4096
pdpt:	.skip	4096
pd:	.skip	4096

	begin
	mov	dword ptr [pml4], offset pdpt + PAGE_PRESENT_WRITABLE
	mov	dword ptr [pdpt], offset pd + PAGE_PRESENT_WRITABLE
	mov	dword ptr [pd], 0 | PAGE_LARGE | PAGE_PRESENT_WRITABLE
	mov	eax, offset pml4
	mov	cr3, eax

	mov	eax, cr4
	or	eax, CR4_PAE
	mov	cr4, eax

	mov	ecx, MSR_EFER
	rdmsr
	or	eax, EFER_LME
	wrmsr

	mov	eax, cr0
	or	eax, CR0_PG
	mov	cr0, eax

	lgdt	[gdt_pointer]
	jmp	CODE64, offset long_mode

	.data
	.balign	8
gdt:	.quad	0
	.quad	0x00209b0000000000	/* 0x08: 64-bit code */
gdt_pointer:
	.word	gdt_pointer - gdt - 1
	.long	gdt

	.text
	.code64
long_mode:
	print "long mode reached: "
	mov	rax, 0x0123456789abcdef
	ror	rax, 32			/* the upper half first, which only 64-bit code can do in one go */
	print_hex
	ror	rax, 32
	print_hex
	print "\n"
	exit 0

	print_routines r
