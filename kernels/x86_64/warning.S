/* Prints what a Linux kernel prints when it has found something wrong with itself (WARN_ON), and goes on.
 *
 * Shows: a splat that does not end the guest, whose status is 0. */

#include "pvh.inc"
#include "serial.inc"

	begin
	print "[    0.010000] all is well so far\n"
	print "[    0.010001] ------------[ cut here ]------------\n"
	print "[    0.010002] WARNING: CPU: 0 PID: 1 at lib/made_up.c:42 made_up+0x12/0x40\n"
	print "[    0.010003] Call Trace:\n"
	print "[    0.010004]  <TASK>\n"
	print "[    0.010005]  made_up+0x12/0x40\n"
	print "[    0.010006]  </TASK>\n"
	print "[    0.010007] ---[ end trace 0000000000000000 ]---\n"
	print "[    0.010008] and goes on\n"
	exit 0

	print_routines
