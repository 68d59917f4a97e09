/* Sends a whole string with one instruction, and reads one back with another.
 *
 * Shows: string I/O.  An exit of REP OUTSB may carry several bytes (the count in kvm_run), and of REP INSB too. */

#include "pvh.inc"
#include "serial.inc"

	.set NOBODY, 0x1230		/* a port that nobody answers: all ones */

	.data
text:	.ascii	"this line is one rep outsb\n"
text_end:
	.bss
	.balign	4
answer:	.skip	8

	begin
	mov	esi, offset text
	mov	ecx, offset text_end - text
	mov	dx, UART_DATA
	rep	outsb

	mov	edi, offset answer
	mov	ecx, 8
	mov	dx, NOBODY
	rep	insb
	cmp	dword ptr [answer], 0xffffffff
	jne	wrong
	cmp	dword ptr [answer + 4], 0xffffffff
	jne	wrong
	exit 0
wrong:	exit 1
