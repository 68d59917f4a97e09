/* Breaks into its own handler and returns from it, as every kernel does all the time.
 *
 * Shows: INT3 and IRET.  A software KVM whose instruction emulator lacks them stops with
 * KVM_EXIT_INTERNAL_ERROR; hardware ends with status 0. */

#include "pvh.inc"
#include "serial.inc"

	.set BREAKPOINT, 3

	.bss
	.balign	8
idt:	.skip	(BREAKPOINT + 1) * 8
	.data
idt_pointer:
	.word	(BREAKPOINT + 1) * 8 - 1
	.long	idt

	begin
	mov	eax, offset on_breakpoint
	mov	word ptr [idt + BREAKPOINT * 8], ax
	mov	word ptr [idt + BREAKPOINT * 8 + 2], cs
	mov	word ptr [idt + BREAKPOINT * 8 + 4], 0x8e00
	shr	eax, 16
	mov	word ptr [idt + BREAKPOINT * 8 + 6], ax
	lidt	[idt_pointer]
	int3
	print "back from the breakpoint\n"
	exit 0

on_breakpoint:
	print "in the breakpoint's handler\n"
	iretd

	print_routines
