/* Looks at the time-stamp counter without a pause, and remembers the longest gap between two looks.
 *
 * Shows: that a paused guest's counter stands still.  A byte from the console ends it; it prints the gap, and how long
 * it looked, both in units of 2^20 cycles. */

#include "pvh.inc"
#include "serial.inc"

	.bss
	.balign	8
first:	.skip	8			/* the counter at the first look */
gap:	.skip	8			/* the longest gap so far */
looks:	.skip	4

	begin
	print "looking\n"
	rdtsc
	mov	[first], eax
	mov	[first + 4], edx
	mov	esi, eax		/* EDI:ESI is the counter at the last look */
	mov	edi, edx

look:	inc	dword ptr [looks]
	test	dword ptr [looks], 0x3ff	/* the console now and then, as that is an exit */
	jnz	3f
	read_port UART_LSR
	test	al, LSR_DR
	jnz	done
3:	rdtsc
	mov	ebx, eax
	mov	ecx, edx
	sub	ebx, esi
	sbb	ecx, edi
	mov	esi, eax
	mov	edi, edx
	cmp	ecx, [gap + 4]
	jb	look
	ja	4f
	cmp	ebx, [gap]
	jbe	look
4:	mov	[gap], ebx
	mov	[gap + 4], ecx
	jmp	look

/* Sends EDX:EAX / 2^20. */
	.macro print_units
	shrd	eax, edx, 20
	print_hex
	.endm

done:	sub	esi, [first]
	sbb	edi, [first + 4]
	push	esi
	print "gap "
	mov	eax, [gap]
	mov	edx, [gap + 4]
	print_units
	print " of "
	pop	eax
	mov	edx, edi
	print_units
	print "\n"
	exit 0

	print_routines
