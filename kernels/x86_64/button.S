/* Waits for the power button.
 *
 * Shows: that the button's event is an edge on GSI 9, pin 9 of the I/O APIC, which the DSDT gives as the interrupt of
 * the generic event device.  A kernel with ACPI would call the device's method _EVT then; this one just ends. */

#include "pvh.inc"
#include "serial.inc"
#include "apic.inc"

	.set BUTTON_PIN, 9
	.set BUTTON_REDIRECTION, IOAPIC_REDIRECTION + 2 * BUTTON_PIN

	begin
	take_interrupts pressed
	mov	dword ptr [IOAPIC_INDEX], BUTTON_REDIRECTION + 1
	mov	dword ptr [IOAPIC_DATA], 0 << 24		/* to local APIC 0 */
	mov	dword ptr [IOAPIC_INDEX], BUTTON_REDIRECTION
	mov	dword ptr [IOAPIC_DATA], VECTOR		/* fixed, edge, active high, not masked */
	print "press the button\n"
	sti
	hlt
	exit 1

pressed:
	print "pressed\n"
	exit 0

	print_routines
