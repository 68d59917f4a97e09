/* Tries to reach beyond its RAM, and prints what it sees there.
 *
 * Shows: that the guest has its RAM and nothing else: beyond are all ones, and what is written there is lost.  It
 * tries the bytes after each range of RAM in the memory map below 4 GiB, and the hole there.  Status 0 if nothing
 * was to be seen, 1 if anything was. */

#include "pvh.inc"
#include "serial.inc"

	.set HOLE, 0xc0000000

	begin
	mov	ebp, ebx		/* start_info */
	xor	ebx, ebx		/* becomes the status */
	mov	edi, HOLE
	call	try
	mov	edi, HOLE + 0x3e000000
	call	try

	mov	esi, [ebp + START_INFO_MEMMAP]
	mov	ecx, [ebp + START_INFO_MEMMAP_ENTRIES]
next:	test	ecx, ecx
	jz	done
	dec	ecx
	cmp	dword ptr [esi + MEMMAP_ADDR + 4], 0
	jne	skip			/* from 4 GiB on: 32-bit code cannot go there */
	cmp	dword ptr [esi + MEMMAP_ADDR], 0x100000
	jb	skip			/* below 1 MiB: RAM follows, reserved for tables */
	mov	edi, [esi + MEMMAP_ADDR]
	add	edi, [esi + MEMMAP_SIZE]
	push	esi
	call	try
	pop	esi
skip:	add	esi, MEMMAP_ENTRY_SIZE
	jmp	next
done:	mov	al, bl
	out	GUEST_STATUS, al
	halt

/* Writes and reads the four bytes at EDI. */
try:	push	ecx
	mov	dword ptr [edi], 0x5ec4e7
	mov	ecx, [edi]
	print "at "
	mov	eax, edi
	print_hex
	print " is "
	mov	eax, ecx
	print_hex
	print "\n"
	cmp	eax, 0xffffffff
	je	2f
	mov	bl, 1
2:	pop	ecx
	ret

	print_routines
