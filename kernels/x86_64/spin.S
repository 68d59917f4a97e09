/* Loops for ever without an exit: what only a timeout, a signal or the user can end.
 *
 * Shows: that a vCPU which never exits can still be stopped. */

#include "pvh.inc"
#include "serial.inc"

	begin
	print "spinning\n"
2:	jmp	2b

	print_routines
