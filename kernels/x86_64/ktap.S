/* Prints test results as KUnit does (Documentation/dev-tools/ktap.rst of Linux), nested, among kernel messages.
 *
 * Shows: test results found on a console: three tests in a suite, of which one fails and one is skipped. */

#include "pvh.inc"
#include "serial.inc"

	begin
	print "[    0.010000] KTAP version 1\n"
	print "[    0.010001] 1..1\n"
	print "[    0.010002]     KTAP version 1\n"
	print "[    0.010003]     # Subtest: arithmetic\n"
	print "[    0.010004]     1..3\n"
	print "[    0.010005]     ok 1 adds\n"
	print "[    0.010006]     # divides: EXPECTATION FAILED at test.c:7\n"
	print "[    0.010007]     not ok 2 divides\n"
	print "[    0.010008]     ok 3 takes roots # SKIP no FPU\n"
	print "[    0.010009] # arithmetic: pass:1 fail:1 skip:1 total:3\n"
	print "[    0.010010] not ok 1 arithmetic\n"
	exit 0

	print_routines
