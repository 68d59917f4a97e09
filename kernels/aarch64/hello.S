/* Prints a line on the serial port and powers off: the least that shows a guest running.
 *
 * Shows: the entry, polled serial output, PSCI SYSTEM_OFF. */

#include "guest.inc"

	begin
	print "hello from a guest of pyvmm\n"
	psci PSCI_SYSTEM_OFF
	b .

	print_routines
