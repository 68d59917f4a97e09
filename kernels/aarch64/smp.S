/* Starts a second vCPU, which prints a line and powers off.
 *
 * Shows: PSCI CPU_ON, and that the vCPU starts there with its context in x0. */

#include "guest.inc"

	begin
	print "one\n"
	mov x1, #1			/* the second vCPU's MPIDR affinity */
	adrp x2, second
	add x2, x2, :lo12:second
	mov x3, #0x77			/* its x0 */
	psci PSCI_CPU_ON_64
	cbnz w0, failed
1:	wfe
	b 1b

second:
	cmp x0, #0x77
	b.ne failed
	print "two\n"
	psci PSCI_SYSTEM_OFF
	b .

failed:
	exit 1
	.ltorg

	print_routines
