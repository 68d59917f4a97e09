/* Prints what a Linux kernel prints when it panics, and halts as it does.
 *
 * Shows: that a panic is seen on the console, where the processor would only sleep. */

#include "pvh.inc"
#include "serial.inc"

	begin
	print "[    0.012345] Kernel panic - not syncing: test\n"
	print "[    0.012346] ---[ end Kernel panic - not syncing: test ]---\n"
	halt

	print_routines
