/* Four instructions, one of them an exit: what is left of a run's time is the VMM's own start and end.
 *
 * Shows: the smallest guest there can be; the benchmark of start-up times it. */

#include "pvh.inc"

	.text
	.code32
	.globl	guest
guest:	xor	eax, eax
	out	GUEST_STATUS, al
2:	hlt
	jmp	2b
