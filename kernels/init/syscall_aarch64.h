/* What init.c needs of aarch64: its entry, system calls, and the guest status register.
 *
 * The convention is that of Linux Documentation/arch/arm64 and the AAPCS64: the number in x8, arguments in x0 to
 * x5, the result in x0, a negative errno on failure.  The numbers are those of Linux
 * include/uapi/asm-generic/unistd.h.
 */

enum {
	SYS_fcntl = 25,
	SYS_ioctl = 29,
	SYS_mknodat = 33,
	SYS_openat = 56,
	SYS_read = 63,
	SYS_write = 64,
	SYS_ppoll = 73,
	SYS_sync = 81,
	SYS_exit = 93,
	SYS_reboot = 142,
	SYS_uname = 160,
	SYS_getpid = 172,
	SYS_mmap = 222,
};

/* The kernel enters with argc, argv, 0, envp, 0 on the stack, which is aligned as a call needs it. */
__asm__(".globl _start\n"
	"_start:\n"
	"	mov x29, xzr\n"
	"	mov x30, xzr\n"
	"	mov x0, sp\n"
	"	bl init\n"
	"	brk #0\n");

static inline long syscall6(long number, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;

	__asm__ volatile("svc #0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
			 : "memory");
	return x0;
}

static inline long syscall4(long number, long a, long b, long c, long d)
{
	return syscall6(number, a, b, c, d, 0, 0);
}

enum { AT_FDCWD = -100, O_RDWR = 2, O_SYNC = 04010000 };

static inline long open_read_write(const char *path)
{
	return syscall4(SYS_openat, AT_FDCWD, (long)path, O_RDWR, 0);
}

static inline void wait_for_signal(void)
{
	syscall6(SYS_ppoll, 0, 0, 0, 0, 0, 0);
}

/* Write status to the guest status register, which ends the virtual machine; returns if it may not (no /dev/mem).
 * /dev/mem opened with O_SYNC is mapped as device memory (Linux arch/arm64/mm/mmu.c, phys_mem_access_prot). */
static inline void end_with_status(unsigned char status)
{
	enum { GUEST_STATUS = 0x0b000000, PAGE = 0x1000, S_IFCHR_0600 = 020600, DEV_MEM = 0x101 };
	enum { PROT_WRITE = 2, MAP_SHARED = 1 };
	long fd, at;

	syscall4(SYS_mknodat, AT_FDCWD, (long)"/.pyvmm-mem", S_IFCHR_0600, DEV_MEM);
	fd = syscall4(SYS_openat, AT_FDCWD, (long)"/.pyvmm-mem", O_RDWR | O_SYNC, 0);
	if (fd < 0)
		return;
	at = syscall6(SYS_mmap, 0, PAGE, PROT_WRITE, MAP_SHARED, fd, GUEST_STATUS);
	if (at > 0 || at < -4095)
		__asm__ volatile("strb %w0, [%1]" : : "r"(status), "r"(at) : "memory");
}
