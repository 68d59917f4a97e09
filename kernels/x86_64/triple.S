/* Triple fault: an exception with no interrupt table, twice over.
 *
 * Shows: what a kernel that dies early looks like.  The division error finds no gate, that is a general
 * protection fault, which finds none either, that is a double fault, and neither does that: the processor shuts
 * down, and KVM says KVM_EXIT_SHUTDOWN. */

#include "pvh.inc"

	.data
no_idt:	.word	0
	.long	0

	begin
	lidt	[no_idt]
	xor	ecx, ecx
	div	ecx
	exit 1				/* never comes here */
