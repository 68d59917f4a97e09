/* Gives back each line of input with "echo: " before it, until the line "quit"; then ends with status 0.
 *
 * Shows: polled serial input: LSR says when a byte has come. */

#include "pvh.inc"
#include "serial.inc"

	.bss
line:	.skip	256
line_end:

	begin
	print "ready\n"

next_line:
	mov	edi, offset line
next_byte:
	read_port UART_LSR
	test	al, LSR_DR
	jz	next_byte
	read_port UART_DATA
	cmp	al, '\r'		/* what the Enter key sends */
	je	whole_line
	cmp	al, '\n'
	je	whole_line
	cmp	edi, offset line_end - 1
	jae	next_byte		/* too long: the rest is dropped */
	stosb
	jmp	next_byte

whole_line:
	mov	byte ptr [edi], 0
	print "echo: "
	mov	esi, offset line
	call	send_string
	print "\n"
	cmp	dword ptr [line], 0x74697571	/* "quit", the first letter in the lowest byte */
	jne	next_line
	cmp	byte ptr [line + 4], 0
	jne	next_line
	exit 0

	print_routines
