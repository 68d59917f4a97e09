/* Prints a line on the serial port and ends with status 0: the least that shows a guest running.
 *
 * Shows: the PVH entry, polled serial output (an exit for each read of LSR and each byte), the status port. */

#include "pvh.inc"
#include "serial.inc"

	begin
	print "hello from a guest of pyvmm\n"
	exit 0

	print_routines
