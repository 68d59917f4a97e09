/* Takes an interrupt from the serial port.
 *
 * Shows: a device's way to the processor: UART, pin 4 of the I/O APIC, vector, handler.  Asking for the interrupt
 * "transmitter holding register empty" raises it at once, as the register is empty.  The handler asks the UART
 * why it was called, prints the answer (0x02 in the low four bits is the THRE interrupt) and ends the guest. */

#include "pvh.inc"
#include "serial.inc"
#include "apic.inc"

	.set COM1_PIN, 4
	.set COM1_REDIRECTION, IOAPIC_REDIRECTION + 2 * COM1_PIN

	begin
	take_interrupts on_serial
	mov	dword ptr [IOAPIC_INDEX], COM1_REDIRECTION + 1
	mov	dword ptr [IOAPIC_DATA], 0 << 24		/* to local APIC 0 */
	mov	dword ptr [IOAPIC_INDEX], COM1_REDIRECTION
	mov	dword ptr [IOAPIC_DATA], VECTOR		/* fixed, edge, active high, not masked */
	write_port UART_MCR, MCR_OUT2
	sti
	write_port UART_IER, IER_THRI
	hlt
	exit 1

on_serial:
	read_port UART_IIR
	movzx	ebx, al
	write_port UART_IER, 0
	print "serial interrupt, IIR "
	mov	eax, ebx
	print_hex
	print "\n"
	exit 0

	print_routines
