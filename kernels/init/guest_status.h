/* The guest status register, by which a guest ends its virtual machine with a status of its own. */

#if defined(__x86_64__)

/* Write status to its port, which ends the virtual machine; returns if it may not. */
static inline void end_with_status(unsigned char status)
{
	enum { GUEST_STATUS_PORT = 0xf4 };

	if (syscall3(SYS_ioperm, GUEST_STATUS_PORT, 1, 1) == 0)
		__asm__ volatile("out %0, %1" : : "a"(status), "N"(GUEST_STATUS_PORT));
}

#else

/* Write status to the register, which ends the virtual machine; returns if it may not (no /dev/mem).
 * /dev/mem opened with O_SYNC is mapped as device memory (Linux arch/arm64/mm/mmu.c, phys_mem_access_prot). */
static inline void end_with_status(unsigned char status)
{
	enum { GUEST_STATUS = 0x0b000000, PAGE = 0x1000, S_IFCHR_0600 = 020600, DEV_MEM = 0x101 };
	enum { O_SYNC = 04010000, PROT_WRITE = 2, MAP_SHARED = 1 };
	long fd, at;

	syscall4(SYS_mknodat, AT_FDCWD, "/.pyvmm-mem", S_IFCHR_0600, DEV_MEM);
	fd = sys_open("/.pyvmm-mem", O_RDWR | O_SYNC, 0);
	if (fd < 0)
		return;
	at = syscall6(SYS_mmap, 0, PAGE, PROT_WRITE, MAP_SHARED, fd, GUEST_STATUS);
	if (at > 0 || at < -4095)
		__asm__ volatile("strb %w0, [%1]" : : "r"(status), "r"(at) : "memory");
}

#endif
