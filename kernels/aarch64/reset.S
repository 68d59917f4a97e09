/* Asks for a reset.
 *
 * Shows: PSCI SYSTEM_RESET. */

#include "guest.inc"

	begin
	psci PSCI_SYSTEM_RESET
	b .
	.ltorg
