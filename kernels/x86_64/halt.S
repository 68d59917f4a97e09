/* HLT with interrupts off: nothing can wake the processor.
 *
 * Shows: the end of a guest that cannot power off.  KVM serves HLT itself and makes no exit, so pyvmm asks for the
 * vCPU's state when it has heard nothing for a while. */

#include "pvh.inc"

	begin
	cli
forever:
	hlt
	jmp	forever
