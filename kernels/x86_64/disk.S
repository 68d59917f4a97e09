/* Drives a block device (virtio 1.2, section 5.2), the first virtio device of the machine.
 *
 * Shows: sector 2 written, flushed and read back, and a read beyond the end, which fails.  Before it writes, it prints
 * the first four bytes of the sector, so that a second run tells whether the first one's write was kept.  Status 0 if
 * all was as it should be, 1 if not. */

#include "pvh.inc"
#include "serial.inc"
#include "apic.inc"
#include "virtio.inc"

	.set DEVICE_ID_BLOCK, 2
	.set SECTOR, 512
	.set PATTERN, 0x6b736964	/* "disk" */

	/* Requests and statuses, section 5.2.6. */
	.set IN, 0
	.set OUT, 1
	.set FLUSH, 4
	.set OK, 0
	.set IOERR, 1

	.bss
	.balign	512
source:	.skip	SECTOR
target:	.skip	SECTOR
header:	.skip	16			/* type, reserved, sector */
status:	.skip	1

/* One request whose chain is filled in, with the status it should get. */
	.macro disk_request type, sector, expected
	mov	dword ptr [header], \type
	mov	dword ptr [header + 8], \sector
	mov	byte ptr [status], 0xff
	virtio_request 0
	cmp	byte ptr [status], \expected
	jne	wrong
	.endm

/* The chain: header, data (descriptor 1), status. */
	.macro read_chain
	descriptor 0, header, 16, DESC_NEXT, 1
	descriptor 1, target, SECTOR, DESC_NEXT|DESC_WRITE, 2
	descriptor 2, status, 1, DESC_WRITE
	.endm

	begin
	start_virtio DEVICE_ID_BLOCK

	read_chain
	disk_request IN, 2, OK
	print "disk: sector 2 begins "
	mov	eax, [target]
	print_hex

	mov	edi, offset source
	mov	ecx, SECTOR / 4
	mov	eax, PATTERN
	rep stosd
	descriptor 1, source, SECTOR, DESC_NEXT, 2
	disk_request OUT, 2, OK

	descriptor 0, header, 16, DESC_NEXT, 2
	disk_request FLUSH, 0, OK

	read_chain
	disk_request IN, 2, OK
	mov	esi, offset source
	mov	edi, offset target
	mov	ecx, SECTOR / 4
	repe cmpsd
	jne	wrong

	mov	eax, [CONFIG]			/* the capacity in sectors: there is none of that number */
	mov	[header + 8], eax
	mov	byte ptr [status], 0xff
	virtio_request 0
	cmp	byte ptr [status], IOERR
	jne	wrong

	print ", and was written\n"
	exit 0

wrong:	print "disk: wrong after requests "
	mov	eax, ebx
	print_hex
	print "\n"
	exit 1

	virtio_handler
	print_routines
