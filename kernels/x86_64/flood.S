/* Prints 1 MiB as fast as it can: 16384 lines of 64 bytes, without asking whether there is room.
 *
 * Shows: console output at full speed, and that none of it is lost. */

#include "pvh.inc"
#include "serial.inc"

	.set LINES, 16384

	.data
line:	.ascii	"flood: a line of 64 bytes, of which there are 16384 in one MiB\n\n"
line_end:
	.if line_end - line - 64
	.error "the line must be 64 bytes"
	.endif

	begin
	mov	dx, UART_DATA
	mov	ebx, LINES
2:	mov	esi, offset line
	mov	ecx, offset line_end - line
	rep	outsb
	dec	ebx
	jnz	2b
	exit 0
