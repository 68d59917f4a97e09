/* The first process of `pyvmm boot --verify`: says that userspace was reached, and powers off.
 *
 * It is freestanding (no C library), static and small, so that unpacking and starting it cost next to
 * nothing.  Each message is one write(), so that the kernel hands the serial port whole bursts.
 *
 * A kernel passes to init what it does not know on its command line: NAME=VALUE without a dot in NAME becomes
 * an environment variable.  Tests use this to have a guest do more before it ends, in this order:
 *
 *   pyvmm_echo=1     give back each line of input with "echo: " before it, until the line "quit" or no more input
 *   pyvmm_lines=N    print N numbered lines
 *   pyvmm_spam=N     print N bytes of text
 *   pyvmm_status=N   end the machine by writing N to its guest status port
 *   pyvmm_end=HOW    poweroff (what it does untold), reboot, halt, hang (sleep for ever),
 *                    panic or exit=N (leave with status 1 or N, at which the kernel panics)
 *
 * Run by hand, as any other process than the first, it does the same but never ends the machine.
 */

#if defined(__x86_64__)
#include "syscall_x86_64.h"
#elif defined(__aarch64__)
#include "syscall_aarch64.h"
#else
#error "init has no system calls for this architecture yet: add a syscall_*.h beside this file"
#endif

/* include/uapi/linux/utsname.h: struct new_utsname */
struct utsname {
	char sysname[65], nodename[65], release[65], version[65], machine[65], domainname[65];
};

/* include/uapi/linux/reboot.h */
#define REBOOT_MAGIC1 0xfee1deadL
#define REBOOT_MAGIC2 672274793L
#define REBOOT_RESTART 0x01234567L
#define REBOOT_HALT 0xcdef0123L
#define REBOOT_POWER_OFF 0x4321fedcL

#define TCSBRK 0x5409 /* include/uapi/asm-generic/ioctls.h; with an argument of 1: wait until all is sent */
#define F_GETFD 1

enum { STDIN, STDOUT, STDERR };

static char buffer[4096];
static unsigned long used;

static void flush(void)
{
	unsigned long done = 0;

	while (done < used) {
		long wrote = syscall4(SYS_write, STDOUT, (long)(buffer + done), (long)(used - done), 0);

		if (wrote <= 0)
			break;
		done += (unsigned long)wrote;
	}
	used = 0;
}

static void put(char character)
{
	if (used == sizeof(buffer))
		flush();
	buffer[used++] = character;
}

static void put_text(const char *text)
{
	while (*text)
		put(*text++);
}

static void put_number(unsigned long number)
{
	if (number >= 10)
		put_number(number / 10);
	put((char)('0' + number % 10));
}

/* The value of NAME=VALUE in the environment, or 0. */
static const char *value_of(char **environment, const char *name)
{
	for (; *environment; environment++) {
		const char *text = *environment;
		const char *wanted = name;

		while (*wanted && *text == *wanted)
			text++, wanted++;
		if (!*wanted && *text == '=')
			return text + 1;
	}
	return 0;
}

static unsigned long number_in(const char *text)
{
	unsigned long number = 0;

	for (; text && *text >= '0' && *text <= '9'; text++)
		number = number * 10 + (unsigned long)(*text - '0');
	return number;
}

static int same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

static void say_hello(void)
{
	struct utsname name;

	syscall4(SYS_uname, (long)&name, 0, 0, 0);
	put_text("pyvmm: userspace reached, ");
	put_text(name.sysname);
	put(' ');
	put_text(name.release);
	put(' ');
	put_text(name.machine);
	put('\n');
	flush();
}

static void echo_lines(void)
{
	static char line[1024];
	unsigned long length = 0;
	char character;

	while (syscall4(SYS_read, STDIN, (long)&character, 1, 0) == 1) {
		if (character != '\n') {
			if (length < sizeof(line) - 1)
				line[length++] = character;
			continue;
		}
		line[length] = 0;
		length = 0;
		put_text("echo: ");
		put_text(line);
		put('\n');
		flush();
		if (same(line, "quit"))
			break;
	}
}

static void print_lines(unsigned long count)
{
	for (unsigned long line = 1; line <= count; line++) {
		put_text("line ");
		put_number(line);
		put('\n');
		flush();
	}
}

static void print_spam(unsigned long bytes)
{
	static const char line[] = "The quick brown fox jumps over the lazy dog, and then does so again and again.\n";

	for (unsigned long n = 0; n < bytes; n++)
		put(n + 1 == bytes ? '\n' : line[n % (sizeof(line) - 1)]);
	flush();
}

static void leave(unsigned long status)
{
	for (;;)
		syscall4(SYS_exit, (long)status, 0, 0, 0);
}

static void end(const char *how)
{
	long command = REBOOT_POWER_OFF;

	if (!how)
		how = "poweroff";
	while (same(how, "hang"))
		wait_for_signal();
	if (same(how, "panic"))
		leave(1);
	if (how[0] == 'e' && how[1] == 'x' && how[2] == 'i' && how[3] == 't' && how[4] == '=')
		leave(number_in(how + 5));
	if (same(how, "reboot"))
		command = REBOOT_RESTART;
	else if (same(how, "halt"))
		command = REBOOT_HALT;
	else if (!same(how, "poweroff")) {
		put_text("pyvmm: init knows no pyvmm_end=");
		put_text(how);
		put_text(", powering off\n");
		flush();
	}
	syscall4(SYS_ioctl, STDOUT, TCSBRK, 1, 0); /* what the terminal holds would be lost */
	syscall4(SYS_sync, 0, 0, 0, 0);
	if (syscall4(SYS_getpid, 0, 0, 0, 0) == 1)
		syscall4(SYS_reboot, REBOOT_MAGIC1, REBOOT_MAGIC2, command, 0);
	leave(0);
}

/* stack: argc, argv[argc], 0, environment, 0 */
__attribute__((noreturn, used)) void init(long *stack)
{
	char **environment = (char **)(stack + 1 + stack[0] + 1);
	const char *status;

	for (int fd = STDIN; fd <= STDERR; fd++)
		if (syscall4(SYS_fcntl, fd, F_GETFD, 0, 0) < 0)
			open_read_write("/dev/console");

	say_hello();
	if (value_of(environment, "pyvmm_echo"))
		echo_lines();
	print_lines(number_in(value_of(environment, "pyvmm_lines")));
	print_spam(number_in(value_of(environment, "pyvmm_spam")));
	status = value_of(environment, "pyvmm_status");
	if (status) {
		syscall4(SYS_ioctl, STDOUT, TCSBRK, 1, 0);
		end_with_status((unsigned char)number_in(status));
		put_text("pyvmm: init may not use the status port\n");
		flush();
	}
	end(value_of(environment, "pyvmm_end"));
	__builtin_unreachable();
}
