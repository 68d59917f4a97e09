/* Drives the entropy device, the first virtio device of the machine.
 *
 * Shows: the registers of virtio-mmio (virtio 1.2, section 4.2), a split virtqueue, the kick, the interrupt and its
 * acknowledgement.  REQUESTS times it asks for 64 bytes, waits for the interrupt and looks at the used ring.  Status 0
 * if all were answered, 1 if not. */

#include "pvh.inc"
#include "serial.inc"
#include "apic.inc"
#include "virtio.inc"

	.set DEVICE_ID_ENTROPY, 4
	.set REQUESTS, 5
	.set BYTES, 64

	.bss
	.balign	64
buffer:	.skip	BYTES

	begin
	start_virtio DEVICE_ID_ENTROPY
	descriptor 0, buffer, BYTES, DESC_WRITE

request:
	virtio_request 0
	lea	eax, [ebx - 1]
	and	eax, SIZE - 1
	cmp	dword ptr [used + 8 + 8 * eax], BYTES
	jne	wrong
	cmp	ebx, REQUESTS
	jne	request

	print "virtio: all requests were answered, the last begins "
	mov	eax, [buffer]
	print_hex
	print "\n"
	exit 0

wrong:	print "virtio: wrong after requests "
	mov	eax, ebx
	print_hex
	print "\n"
	exit 1

	virtio_handler
	print_routines
