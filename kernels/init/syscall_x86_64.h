/* What init.c needs of x86_64: its entry, system calls, and the guest status port.
 *
 * The convention is in the System V ABI for AMD64, appendix A.2: the number in rax, arguments in rdi, rsi,
 * rdx and r10, the result in rax, a negative errno on failure; rcx and r11 are lost.  The numbers are those of
 * Linux arch/x86/entry/syscalls/syscall_64.tbl.
 */

enum {
	SYS_read = 0,
	SYS_write = 1,
	SYS_open = 2,
	SYS_ioctl = 16,
	SYS_pause = 34,
	SYS_getpid = 39,
	SYS_exit = 60,
	SYS_uname = 63,
	SYS_fcntl = 72,
	SYS_sync = 162,
	SYS_reboot = 169,
	SYS_ioperm = 173,
};

/* The kernel enters with argc, argv, 0, envp, 0 on the stack and no return address: pass that on. */
__asm__(".globl _start\n"
	"_start:\n"
	"	xor %ebp, %ebp\n"
	"	mov %rsp, %rdi\n"
	"	and $-16, %rsp\n"
	"	call init\n"
	"	hlt\n");

static inline long syscall4(long number, long a, long b, long c, long d)
{
	register long fourth __asm__("r10") = d;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth)
			 : "rcx", "r11", "memory");
	return result;
}

static inline long open_read_write(const char *path)
{
	return syscall4(SYS_open, (long)path, 2 /* O_RDWR */, 0, 0);
}

static inline void wait_for_signal(void)
{
	syscall4(SYS_pause, 0, 0, 0, 0);
}

/* Write status to the guest status port, which ends the virtual machine; returns if it may not. */
static inline void end_with_status(unsigned char status)
{
	enum { GUEST_STATUS_PORT = 0xf4 };

	if (syscall4(SYS_ioperm, GUEST_STATUS_PORT, 1, 1, 0) == 0)
		__asm__ volatile("out %0, %1" : : "a"(status), "N"(GUEST_STATUS_PORT));
}
