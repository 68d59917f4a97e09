/* Executes an undefined instruction, with an exception vector table of zeroes, which are undefined as well.
 *
 * Shows: a guest that takes the same exception for ever, and where it is when the time is up. */

#include "guest.inc"

	begin
	adrp x0, vectors
	msr vbar_el1, x0
	isb
	print "about to fault\n"
	udf #0

	print_routines
	.bss
	.balign 4096
vectors:
	.skip 0x800
