/* Ends with status 3.
 *
 * Shows: the guest status register. */

#include "guest.inc"

	begin
	exit 3
	.ltorg
