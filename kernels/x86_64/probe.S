/* Three instructions that every x86_64 processor has and the instruction emulator of a software KVM lacks.
 *
 * Not a guest of its own: pyvmm/arch/x86_64/probe.py carries these bytes, so that a host can be judged without a
 * compiler, and a test assembles this file and compares.  Each part stands at a multiple of 64 bytes from 0x1000,
 * is entered in 64-bit mode with a stack, marks a byte if its instruction did what it should, and halts. */

	.intel_syntax noprefix
	.code64

	.set CODE_SELECTOR, 0x10
	.set DATA_SELECTOR, 0x18
	.set STACK, 0x4000
	.set MARKS, 0x3000		/* one byte for each part */
	.set OPERAND, 0x3010		/* 16 zero bytes, 16-byte aligned */

	.macro part
	.balign	64, 0xf4		/* filled with hlt */
	.endm

	part
/* iretq returns to the next instruction, as from an interrupt there. */
	push	DATA_SELECTOR
	push	STACK
	pushfq
	push	CODE_SELECTOR
	push	offset returned
	iretq
returned:
	mov	byte ptr [MARKS], 1
	hlt

	part
/* int3 goes through its gate to `breakpoint`, and does not return. */
	int3

	part
/* cmpxchg16b finds RDX:RAX, which is zero, at OPERAND, and so stores RCX:RBX there. */
	xor	eax, eax
	xor	edx, edx
	xor	ecx, ecx
	lea	ebx, [rax + 1]
	cmpxchg16b [OPERAND]
	mov	al, byte ptr [OPERAND]
	mov	byte ptr [MARKS + 2], al
	hlt

	part
breakpoint:
	mov	byte ptr [MARKS + 1], 1
	hlt
