/* Goes from protected mode down to real mode, where every processor began, and prints there.
 *
 * Shows: the way down (Intel SDM volume 3, 10.9.2 "Switching Back to Real-Address Mode"): 16-bit segments
 * first, as their limits stay in the hidden part of the segment registers; then PE off; then a far jump to
 * load CS the real-mode way.  A segment times 16 plus an offset reaches only the first MiB, so the code that
 * runs there is copied there. */

#include "pvh.inc"
#include "serial.inc"

	.set LOW, 0x30000		/* free RAM below 1 MiB, 64 KiB aligned */
	.set CODE16, 0x08
	.set DATA16, 0x10
	.set CR0_PE, 1

	begin
	mov	esi, offset low_code
	mov	edi, LOW
	mov	ecx, offset low_code_end - low_code
	rep	movsb

	lgdt	[gdt_pointer]
	jmp	CODE16, offset protected_16 - low_code

	.data
	.balign	8
gdt:	.quad	0
	.quad	0x00009b030000ffff	/* 0x08: 16-bit code, base 0x30000, limit 64 KiB */
	.quad	0x000093000000ffff	/* 0x10: 16-bit data, base 0, limit 64 KiB */
gdt_pointer:
	.word	gdt_pointer - gdt - 1
	.long	gdt

	.text
	.code16
low_code:
protected_16:
	mov	ax, DATA16
	mov	ds, ax
	mov	es, ax
	mov	ss, ax
	mov	eax, cr0
	and	eax, ~CR0_PE
	mov	cr0, eax
	jmp	LOW >> 4, offset real - low_code

real:	mov	ax, cs
	mov	ds, ax
	mov	es, ax
	mov	ss, ax
	mov	sp, 0			/* wraps to the top of the segment */
	mov	si, offset text - low_code
	call	send_string
	exit 0

text:	.asciz	"real mode reached\n"
	print_routines
low_code_end:
