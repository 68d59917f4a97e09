/* The entry of a program without a C library: the one file of it that defines start() includes this.
 *
 * The kernel enters a program with argc, argv[argc], 0, environment, 0 on the stack, and with no return address; start()
 * is given where they are.  On x86_64 the stack has to be aligned for the call, on aarch64 it is.
 */

#ifndef KERNELS_START_H
#define KERNELS_START_H

__attribute__((noreturn, used)) void start(long *stack);

#if defined(__x86_64__)
__asm__(".globl _start\n"
	"_start:\n"
	"	xor %ebp, %ebp\n"
	"	mov %rsp, %rdi\n"
	"	and $-16, %rsp\n"
	"	call start\n"
	"	hlt\n");
#elif defined(__aarch64__)
__asm__(".globl _start\n"
	"_start:\n"
	"	mov x29, xzr\n"
	"	mov x30, xzr\n"
	"	mov x0, sp\n"
	"	bl start\n"
	"	brk #0\n");
#else
#error "there is no entry for this architecture yet: add it here"
#endif

#endif
