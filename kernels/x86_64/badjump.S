/* Jumps to an address where there is no memory.
 *
 * Shows: an instruction that KVM cannot fetch: KVM_EXIT_INTERNAL_ERROR, emulation failure, and no reason given.
 * The VMM's report says where the processor was. */

#include "pvh.inc"
#include "serial.inc"

	.set NOWHERE, 0xd0000000	/* in the hole below 4 GiB */

	begin
	print "jumping out of RAM\n"
	mov	eax, NOWHERE
	jmp	eax

	print_routines
