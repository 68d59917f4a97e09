/* Gives back what is typed until a "q", by polling, and powers off.
 *
 * Shows: input for a guest that enables no interrupt. */

#include "guest.inc"

	.equ UART_FR_RXFE_BIT, 4

	begin
	print "ready\n"
	ldr x20, =UART
1:	ldr w0, [x20, #UART_FR]
	tbnz w0, #UART_FR_RXFE_BIT, 1b
	ldr w0, [x20]
	and w0, w0, #0xff
	cmp w0, #'q'
	b.eq 2f
	str w0, [x20]
	b 1b
2:	print "\nbye\n"
	psci PSCI_SYSTEM_OFF
	b .

	print_routines
