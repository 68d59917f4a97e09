/* Prints its command line, and the first bytes of each module (the initrd is the first).
 *
 * Shows: how PVH hands over strings and files: by physical address, in start_info. */

#include "pvh.inc"
#include "serial.inc"

	begin
	print "cmdline: "
	mov	esi, [ebx + START_INFO_CMDLINE]
	test	esi, esi
	jz	2f
	call	send_string
2:	print "\n"

	mov	edi, [ebx + START_INFO_MODLIST]
	mov	ebp, [ebx + START_INFO_NR_MODULES]
next:	test	ebp, ebp
	jz	done
	print "module: "
	mov	eax, [edi + MODLIST_SIZE]
	print_hex
	print " bytes: "
	mov	esi, [edi + MODLIST_ADDR]
	mov	ecx, 8
	cmp	eax, ecx
	jae	3f
	mov	ecx, eax
3:	jecxz	5f
4:	lodsb
	call	send_byte
	loop	4b
5:	print "\n"
	add	edi, MODLIST_ENTRY_SIZE
	dec	ebp
	jmp	next
done:	exit 0

	print_routines
