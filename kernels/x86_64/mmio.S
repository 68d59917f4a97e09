/* Writes and reads memory-mapped I/O at an address that nobody answers.
 *
 * Shows: MMIO exits of 1, 2 and 4 bytes.  Where there is neither RAM nor a device, a PC's bus floats: writes
 * are lost and reads are all ones.  Status 0 if so, 1 if not. */

#include "pvh.inc"
#include "serial.inc"

	.set NOBODY, 0xd0000000		/* in the hole below 4 GiB */

	begin
	mov	edi, NOBODY
	mov	byte ptr [edi], 0x11
	mov	word ptr [edi + 2], 0x2222
	mov	dword ptr [edi + 4], 0x44444444

	mov	eax, [edi]
	print "mmio read "
	print_hex
	print "\n"
	cmp	eax, 0xffffffff
	jne	wrong
	cmp	word ptr [edi + 2], 0xffff
	jne	wrong
	cmp	byte ptr [edi + 4], 0xff
	jne	wrong
	exit 0

wrong:	print "that is not all ones\n"
	exit 1

	print_routines
