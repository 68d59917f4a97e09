/* What the init and the agent need of Linux: system calls and the structures and numbers they take, without a C library.
 *
 * The numbers are those of arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h; of calls that
 * come in an old and a newer form, only the newer one is used, since arm64 has no other.  Results are those of the
 * kernel: a negative errno on failure.
 */

#ifndef KERNELS_LINUX_H
#define KERNELS_LINUX_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64; /* both architectures have 64-bit longs */
typedef unsigned long size_t;

#if defined(__x86_64__)
enum {
	SYS_read = 0, SYS_write = 1, SYS_close = 3, SYS_mmap = 9, SYS_rt_sigprocmask = 14, SYS_ioctl = 16,
	SYS_getpid = 39, SYS_socket = 41, SYS_clone = 56, SYS_execve = 59, SYS_exit = 60, SYS_wait4 = 61, SYS_kill = 62,
	SYS_uname = 63, SYS_fcntl = 72, SYS_chdir = 80, SYS_setsid = 112, SYS_chroot = 161, SYS_sync = 162,
	SYS_mount = 165, SYS_reboot = 169, SYS_sethostname = 170, SYS_ioperm = 173, SYS_getdents64 = 217,
	SYS_openat = 257, SYS_mkdirat = 258, SYS_mknodat = 259, SYS_unlinkat = 263, SYS_symlinkat = 266, SYS_ppoll = 271,
	SYS_signalfd4 = 289, SYS_dup3 = 292, SYS_pipe2 = 293, SYS_finit_module = 313, SYS_close_range = 436,
};
#elif defined(__aarch64__)
enum {
	SYS_dup3 = 24, SYS_fcntl = 25, SYS_ioctl = 29, SYS_mknodat = 33, SYS_mkdirat = 34, SYS_unlinkat = 35,
	SYS_symlinkat = 36, SYS_mount = 40, SYS_chdir = 49, SYS_chroot = 51, SYS_openat = 56, SYS_close = 57,
	SYS_pipe2 = 59, SYS_getdents64 = 61, SYS_read = 63, SYS_write = 64, SYS_ppoll = 73, SYS_signalfd4 = 74,
	SYS_sync = 81, SYS_exit = 93, SYS_kill = 129, SYS_rt_sigprocmask = 135, SYS_reboot = 142, SYS_setsid = 157,
	SYS_uname = 160, SYS_sethostname = 161, SYS_getpid = 172, SYS_socket = 198, SYS_clone = 220, SYS_execve = 221,
	SYS_mmap = 222, SYS_wait4 = 260, SYS_finit_module = 273, SYS_close_range = 436,
};
#else
#error "there are no system calls for this architecture yet: add them here"
#endif

static inline long syscall6(long number, long a, long b, long c, long d, long e, long f)
{
#if defined(__x86_64__) /* System V ABI for AMD64, appendix A.2 */
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
#else /* AAPCS64, the number in x8 */
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
#endif
}

#define syscall5(n, a, b, c, d, e) syscall6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)
#define syscall4(n, a, b, c, d) syscall5(n, a, b, c, d, 0)
#define syscall3(n, a, b, c) syscall4(n, a, b, c, 0)
#define syscall2(n, a, b) syscall3(n, a, b, 0)
#define syscall1(n, a) syscall2(n, a, 0)
#define syscall0(n) syscall1(n, 0)

/* include/uapi/asm-generic/errno-base.h */
enum { ENOENT = 2, EINTR = 4, EIO = 5, EAGAIN = 11, ENOMEM = 12, EACCES = 13, EEXIST = 17, ENODEV = 19, ENOTDIR = 20,
       EPIPE = 32, E2BIG = 7, ENOEXEC = 8, EMFILE = 24 };

/* include/uapi/asm-generic/fcntl.h; O_DIRECTORY differs */
enum { AT_FDCWD = -100, O_RDONLY = 0, O_WRONLY = 1, O_RDWR = 2, O_CREAT = 0100, O_NOCTTY = 0400, O_TRUNC = 01000,
       O_NONBLOCK = 04000, O_CLOEXEC = 02000000 };
#if defined(__x86_64__)
enum { O_DIRECTORY = 0200000 };
#else
enum { O_DIRECTORY = 040000 };
#endif
enum { F_GETFD = 1, F_SETFD = 2, F_GETFL = 3, F_SETFL = 4, FD_CLOEXEC = 1 };

/* include/uapi/linux/mount.h */
enum { MS_RDONLY = 1, MS_NOSUID = 2, MS_NODEV = 4, MS_NOEXEC = 8, MS_REMOUNT = 32, MS_MOVE = 8192 };

/* include/uapi/linux/reboot.h */
#define REBOOT_MAGIC1 0xfee1dead
#define REBOOT_MAGIC2 672274793
#define REBOOT_RESTART 0x01234567
#define REBOOT_HALT 0xcdef0123
#define REBOOT_POWER_OFF 0x4321fedc

/* include/uapi/asm-generic/signal.h, of both architectures */
enum { SIGHUP = 1, SIGKILL = 9, SIGPIPE = 13, SIGTERM = 15, SIGCHLD = 17, SIG_BLOCK = 0, SIG_SETMASK = 2 };
#define SIGNAL_BIT(number) (1ul << ((number) - 1))
enum { WNOHANG = 1 };

/* include/uapi/asm-generic/poll.h */
enum { POLLIN = 1, POLLOUT = 4, POLLERR = 8, POLLHUP = 16 };
struct pollfd { int fd; short events, revents; };
struct timespec { long seconds, nanoseconds; };

/* include/uapi/asm-generic/ioctls.h and termios.h; TCSBRK with an argument of 1 waits until all is sent */
enum { TCSBRK = 0x5409, TIOCSCTTY = 0x540e, TIOCSWINSZ = 0x5414 };
#define TIOCGPTN 0x80045430
#define TIOCSPTLCK 0x40045431
struct winsize { u16 rows, columns, x, y; };

/* include/uapi/linux/if.h: enough of struct ifreq to switch an interface on */
enum { AF_INET = 2, SOCK_DGRAM = 2, SIOCGIFFLAGS = 0x8913, SIOCSIFFLAGS = 0x8914, IFF_UP = 1 };
struct ifreq { char name[16]; short flags; char rest[22]; };

/* include/uapi/linux/utsname.h */
struct utsname { char sysname[65], nodename[65], release[65], version[65], machine[65], domainname[65]; };

/* include/linux/dirent.h */
struct dirent64 { u64 inode; long offset; u16 length; u8 type; char name[]; };

static inline long sys_open(const char *path, int flags, int mode)
{
	return syscall4(SYS_openat, AT_FDCWD, path, flags | O_CLOEXEC, mode);
}

static inline long sys_read(int fd, void *data, size_t size) { return syscall3(SYS_read, fd, data, size); }
static inline long sys_write(int fd, const void *data, size_t size) { return syscall3(SYS_write, fd, data, size); }
static inline long sys_close(int fd) { return syscall1(SYS_close, fd); }
static inline long sys_kill(int pid, int number) { return syscall2(SYS_kill, pid, number); }
static inline long sys_ioctl(int fd, u64 request, const void *data) { return syscall3(SYS_ioctl, fd, request, data); }
static inline long sys_mkdir(const char *path, int mode) { return syscall3(SYS_mkdirat, AT_FDCWD, path, mode); }

static inline long sys_mount(const char *source, const char *target, const char *type, u64 flags, const char *data)
{
	return syscall5(SYS_mount, source, target, type, flags, data);
}

static inline void sys_exit(int status)
{
	for (;;)
		syscall1(SYS_exit, status);
}

static inline void nap(long milliseconds)
{
	struct timespec time = { milliseconds / 1000, milliseconds % 1000 * 1000000 };

	syscall5(SYS_ppoll, 0, 0, &time, 0, 0);
}

#endif
