/* A division by zero before there is an interrupt table of the guest's own.
 *
 * Shows: how an early exception is found out.  The table that pyvmm leaves in place saves the registers and gives
 * up, so it ends as a triple fault like any other, but the post-mortem names the exception and where it happened,
 * on AMD too, where KVM resets the registers. */

#include "pvh.inc"

	begin
	mov	eax, 0x1234
	xor	ecx, ecx
divide:	div	ecx
	exit 1				/* never comes here */
