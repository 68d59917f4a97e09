/* A reset by the chipset's reset control register, port 0xcf9, and then a loop.
 *
 * Shows: that the register answers at once, although it lies within the 32-bit address register of PCI at 0xcf8,
 * writes to which never leave the kernel. */

#include "pvh.inc"

	begin
	mov	dx, 0xcf8
	mov	eax, 0x80000000
	out	dx, eax
	mov	dx, 0xcf9
	mov	al, 6
	out	dx, al
	exit 1				/* never comes here */
