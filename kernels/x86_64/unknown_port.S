/* Reads and writes a port that nobody answers, 1, 2 and 4 bytes at a time.
 *
 * Shows: how the VMM stands in for an empty bus: reads are all ones, writes are lost.  Status 0 if so. */

#include "pvh.inc"
#include "serial.inc"

	.set NOBODY, 0x1230

	begin
	mov	dx, NOBODY
	xor	eax, eax
	out	dx, al
	out	dx, ax
	out	dx, eax

	in	al, dx
	cmp	eax, 0xff		/* and nothing above AL was touched */
	jne	wrong
	in	ax, dx
	cmp	eax, 0xffff
	jne	wrong
	in	eax, dx
	cmp	eax, 0xffffffff
	jne	wrong
	print "all ones\n"
	exit 0

wrong:	print "not all ones: "
	print_hex
	print "\n"
	exit 1

	print_routines
