/* Drives the entropy device, the first virtio device of the machine.
 *
 * Shows: the registers of virtio-mmio (virtio 1.2, section 4.2), a split virtqueue, the kick, the interrupt and its
 * acknowledgement.  REQUESTS times it asks for 64 bytes, waits for the interrupt and looks at the used ring.  Status 0
 * if all were answered, 1 if not.
 *
 * It writes SETUP_WRITES registers that only the VMM can answer; the rest, reads, QueueNotify and InterruptACK among
 * them, needs no exit. */

#include "pvh.inc"
#include "serial.inc"
#include "apic.inc"

	.set DEVICE, 0xd0000000
	.set PIN, 16
	.set REDIRECTION, IOAPIC_REDIRECTION + 2 * PIN
	.set LAPIC_EOI, LAPIC + 0x0b0

	.set MAGIC, 0x74726976		/* "virt" */
	.set DEVICE_ID_ENTROPY, 4
	.set SIZE, 8			/* of the queue */
	.set REQUESTS, 5
	.set BYTES, 64

	/* Registers, section 4.2.2. */
	.set MAGIC_VALUE, DEVICE + 0x000
	.set VERSION, DEVICE + 0x004
	.set DEVICE_ID, DEVICE + 0x008
	.set DRIVER_FEATURES, DEVICE + 0x020
	.set DRIVER_FEATURES_SEL, DEVICE + 0x024
	.set QUEUE_SEL, DEVICE + 0x030
	.set QUEUE_NUM_MAX, DEVICE + 0x034
	.set QUEUE_NUM, DEVICE + 0x038
	.set QUEUE_READY, DEVICE + 0x044
	.set QUEUE_NOTIFY, DEVICE + 0x050
	.set INTERRUPT_STATUS, DEVICE + 0x060
	.set INTERRUPT_ACK, DEVICE + 0x064
	.set STATUS, DEVICE + 0x070
	.set QUEUE_DESC_LOW, DEVICE + 0x080
	.set QUEUE_DRIVER_LOW, DEVICE + 0x090
	.set QUEUE_DEVICE_LOW, DEVICE + 0x0a0

	.set ACKNOWLEDGE, 1
	.set DRIVER, 2
	.set DRIVER_OK, 4
	.set FEATURES_OK, 8

	.macro set_register register, value
	mov	dword ptr [\register], \value
	.endm

	.macro expect register, value
	cmp	dword ptr [\register], \value
	jne	wrong
	.endm

	.bss
	.balign	4096
descriptors:
	.skip	16 * SIZE
	.balign	64
available:				/* flags, index, ring */
	.skip	6 + 2 * SIZE
	.balign	64
used:					/* flags, index, ring of (id, length) */
	.skip	6 + 8 * SIZE
	.balign	64
buffer:	.skip	BYTES

	begin
	expect	MAGIC_VALUE, MAGIC
	expect	VERSION, 2
	expect	DEVICE_ID, DEVICE_ID_ENTROPY

	take_interrupts on_virtio
	mov	dword ptr [IOAPIC_INDEX], REDIRECTION + 1
	mov	dword ptr [IOAPIC_DATA], 0 << 24	/* to local APIC 0 */
	mov	dword ptr [IOAPIC_INDEX], REDIRECTION
	mov	dword ptr [IOAPIC_DATA], VECTOR		/* fixed, edge, active high, not masked */

	/* Section 3.1.1.  SETUP_WRITES = 13. */
	set_register STATUS, 0
	set_register STATUS, ACKNOWLEDGE
	set_register STATUS, ACKNOWLEDGE|DRIVER
	set_register DRIVER_FEATURES_SEL, 1
	set_register DRIVER_FEATURES, 1			/* VIRTIO_F_VERSION_1 is bit 32 */
	set_register STATUS, ACKNOWLEDGE|DRIVER|FEATURES_OK
	expect	STATUS, ACKNOWLEDGE|DRIVER|FEATURES_OK
	set_register QUEUE_SEL, 0
	cmp	dword ptr [QUEUE_NUM_MAX], SIZE
	jb	wrong
	set_register QUEUE_NUM, SIZE
	mov	dword ptr [QUEUE_DESC_LOW], offset descriptors
	mov	dword ptr [QUEUE_DRIVER_LOW], offset available
	mov	dword ptr [QUEUE_DEVICE_LOW], offset used
	set_register QUEUE_READY, 1
	expect	QUEUE_READY, 1
	set_register STATUS, ACKNOWLEDGE|DRIVER|FEATURES_OK|DRIVER_OK

	/* Descriptor 0: the buffer, for the device to write. */
	mov	dword ptr [descriptors], offset buffer
	mov	dword ptr [descriptors + 8], BYTES
	mov	word ptr [descriptors + 12], 2
	xor	ebx, ebx				/* requests made */

request:
	mov	eax, ebx
	and	eax, SIZE - 1
	mov	word ptr [available + 4 + 2 * eax], 0	/* the chain begins at descriptor 0 */
	inc	ebx
	mov	word ptr [available + 2], bx
	set_register QUEUE_NOTIFY, 0
	sti
	hlt
	jmp	wrong

/* Not a handler that returns: a guest of a software KVM may not be able to. */
on_virtio:
	mov	esp, offset stack_top
	mov	eax, [INTERRUPT_STATUS]
	cmp	eax, 1
	jne	wrong
	mov	[INTERRUPT_ACK], eax
	mov	dword ptr [LAPIC_EOI], 0
	cmp	word ptr [used + 2], bx
	jne	wrong
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

	print_routines
