/* Prints the memory map that the VMM handed over, and checks the start_info it stands in.
 *
 * Shows: struct hvm_start_info and the memory map behind it: start, size and type of each range, as in an e820
 * map (ACPI 6.5, table 15.4: 1 is RAM, 2 is reserved). */

#include "pvh.inc"
#include "serial.inc"

	begin
	cmp	dword ptr [ebx], START_INFO_MAGIC
	jne	no_start_info

	mov	edi, [ebx + START_INFO_MEMMAP]
	mov	ebp, [ebx + START_INFO_MEMMAP_ENTRIES]
next:	test	ebp, ebp
	jz	done
	print "memmap "
	mov	eax, [edi + MEMMAP_ADDR + 4]
	print_hex
	mov	eax, [edi + MEMMAP_ADDR]
	print_hex
	print " "
	mov	eax, [edi + MEMMAP_SIZE + 4]
	print_hex
	mov	eax, [edi + MEMMAP_SIZE]
	print_hex
	print " type "
	mov	eax, [edi + MEMMAP_TYPE]
	print_hex
	print "\n"
	add	edi, MEMMAP_ENTRY_SIZE
	dec	ebp
	jmp	next
done:	exit 0

no_start_info:
	print "no start_info at EBX\n"
	exit 1

	print_routines
