/* Starts the other processors, and has the first of them that comes end the guest.
 *
 * Shows: how processors are started (Intel SDM volume 3, 9.4 "Multiple-Processor (MP) Initialization"; MP
 * specification 1.4, appendix B.4): an INIT and a start-up interrupt (SIPI), from one local APIC to the others.  A SIPI
 * names the page, below 1 MiB, at which they begin in real mode; the code for them is copied there.
 *
 * The command line says how many there must be, in one digit, and in one letter what then happens: c counts them and
 * prints their APIC ids; s, r and e end the guest by a shutdown, a reset and the status 42; t is a triple fault and p a
 * panic; with h all processors halt, with l all loop. */

#include "pvh.inc"
#include "serial.inc"
#include "apic.inc"

	.set LOW, 0x40000		/* free RAM below 1 MiB, 64 KiB aligned */
	.set LAPIC_ICR, LAPIC + 0x300	/* interrupt command register, its lower half */
	.set ICR_OTHERS_INIT, 0xc4500	/* to all but self, level, assert, INIT */
	.set ICR_OTHERS_SIPI, 0xc4600	/* the same with a start-up interrupt; the page's number goes into bits 0-7 */
	.set SLEEP_CONTROL, 0x600	/* ACPI's, as pyvmm's FADT and DSDT say */
	.set SLEEP_S5, 0x34
	.set RESET_CONTROL, 0xcf9
	.set RESET_CPU, 6
	.set STATUS, 42
	.set CR0_PE, 1

	begin
	mov	edx, [ebx + START_INFO_CMDLINE]
	mov	esi, offset low_code
	mov	edi, LOW
	mov	ecx, offset low_code_end - low_code
	rep	movsb
	mov	al, [edx + 1]
	mov	[LOW + wanted - low_code], al

	mov	dword ptr [LAPIC_SVR], SVR_ENABLE | 0xff
	mov	dword ptr [LAPIC_ICR], ICR_OTHERS_INIT
	mov	dword ptr [LAPIC_ICR], ICR_OTHERS_SIPI | LOW >> 12

	movzx	eax, byte ptr [edx]
	sub	eax, '0'
2:	pause
	cmp	[LOW + ready - low_code], eax
	jne	2b
	mov	byte ptr [LOW + go - low_code], 1
	cmp	byte ptr [edx + 1], 'l'
3:	je	3b
	halt

	.code16
low_code:
	mov	ax, cs
	mov	ds, ax
	mov	ss, ax
	xor	sp, sp			/* the first alone uses it; wraps to the top of the segment */
	mov	ebp, 1
	lock xadd [started - low_code], ebp	/* EBP: how many came before */
	mov	eax, 1
	cpuid
	shr	ebx, 24			/* leaf 1: the initial APIC id */
	mov	[bp + ids - low_code], bl
	lock inc dword ptr [ready - low_code]
2:	pause
	cmp	byte ptr [go - low_code], 0
	je	2b

	mov	al, [wanted - low_code]
	cmp	al, 'l'
3:	je	3b
	test	bp, bp
	jnz	stop
	cmp	al, 'c'
	je	count
	cmp	al, 'p'
	je	panic
	cmp	al, 's'
	je	power_off
	cmp	al, 'r'
	je	reset
	cmp	al, 'e'
	je	end
	cmp	al, 't'
	je	triple
stop:	halt

power_off:
	write_port SLEEP_CONTROL, SLEEP_S5
	halt
reset:	write_port RESET_CONTROL, RESET_CPU
	halt
end:	exit STATUS

triple:	lidt	[no_idt - low_code]	/* for protected mode, as in real mode its limit is not heeded everywhere */
	mov	eax, cr0
	or	eax, CR0_PE
	mov	cr0, eax
	xor	cx, cx
	div	cx
	halt

panic:	mov	si, offset panic_text - low_code
	call	send_string
	halt

count:	mov	si, offset count_text - low_code
	call	send_string
	mov	bx, offset ids - low_code
	mov	di, [ready - low_code]
2:	movzx	eax, byte ptr [bx]
	call	send_hex
	mov	al, '\n'
	call	send_byte
	inc	bx
	dec	di
	jnz	2b
	exit 0

count_text:
	.asciz	"started:\n"
panic_text:
	.ascii	"[    0.012345] Kernel panic - not syncing: on another processor\n"
	.asciz	"[    0.012346] ---[ end Kernel panic - not syncing: on another processor ]---\n"
	.balign	8
no_idt:	.word	0
	.long	0
	.balign	8
started:
	.long	0
ready:	.long	0
go:	.byte	0
wanted:	.byte	0
ids:	.skip	16

	print_routines
low_code_end:
