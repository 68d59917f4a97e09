/* Loads a pair of registers from an address where there is nothing.
 *
 * Shows: an access that KVM cannot emulate, as the processor does not say which registers it is about. */

#include "guest.inc"

	begin
	print "about to load a pair\n"
	ldr x0, =0x0c000000
	ldp x1, x2, [x0]
	print "not reached\n"
	psci PSCI_SYSTEM_OFF
	b .

	print_routines
