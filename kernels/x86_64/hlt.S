/* Halts until a timer interrupt wakes it.
 *
 * Shows: an interrupt table, the local APIC's timer, and HLT with interrupts on: the processor sleeps in KVM, no
 * exit reaches the VMM.  The handler ends the guest instead of returning: IRET is not for every KVM. */

#include "pvh.inc"
#include "serial.inc"
#include "apic.inc"

	begin
	take_interrupts on_timer
	mov	dword ptr [LAPIC_TIMER_DIVIDE], DIVIDE_BY_1
	mov	dword ptr [LAPIC_LVT_TIMER], VECTOR	/* one shot */
	mov	dword ptr [LAPIC_TIMER_INITIAL], 1000000	/* KVM's timer counts nanoseconds: 1 ms */
	print "halting\n"
	sti
	hlt
	print "woken without an interrupt\n"
	exit 1

on_timer:
	print "woken by the timer\n"
	exit 0

	print_routines
