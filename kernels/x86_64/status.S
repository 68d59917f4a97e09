/* Ends with the status that its command line names, a decimal number.
 *
 * Shows: that the guest's own status comes out unchanged: `pyvmm boot status.elf --cmdline 42` ends with 42. */

#include "pvh.inc"

	begin
	mov	esi, [ebx + START_INFO_CMDLINE]
	xor	eax, eax
	xor	ecx, ecx		/* the number so far */
next:	lodsb
	sub	al, '0'
	cmp	al, 9
	ja	done
	imul	ecx, ecx, 10
	add	ecx, eax
	jmp	next
done:	mov	al, cl
	out	GUEST_STATUS, al
	halt
