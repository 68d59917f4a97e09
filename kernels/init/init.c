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

#include "../linux.h"
#include "../start.h"
#include "guest_status.h"

enum { STDIN, STDOUT, STDERR };

static char buffer[4096];
static unsigned long used;

static void flush(void)
{
	unsigned long done = 0;

	while (done < used) {
		long wrote = sys_write(STDOUT, buffer + done, used - done);

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

	syscall1(SYS_uname, &name);
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

	while (sys_read(STDIN, &character, 1) == 1) {
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

static void end(const char *how)
{
	long command = REBOOT_POWER_OFF;

	if (!how)
		how = "poweroff";
	while (same(how, "hang"))
		syscall5(SYS_ppoll, 0, 0, 0, 0, 0); /* until a signal */
	if (same(how, "panic"))
		sys_exit(1);
	if (how[0] == 'e' && how[1] == 'x' && how[2] == 'i' && how[3] == 't' && how[4] == '=')
		sys_exit((int)number_in(how + 5));
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
	syscall3(SYS_ioctl, STDOUT, TCSBRK, 1); /* what the terminal holds would be lost */
	syscall0(SYS_sync);
	if (syscall0(SYS_getpid) == 1)
		syscall3(SYS_reboot, REBOOT_MAGIC1, REBOOT_MAGIC2, command);
	sys_exit(0);
}

void start(long *stack)
{
	char **environment = (char **)(stack + 1 + stack[0] + 1);
	const char *status;

	for (int fd = STDIN; fd <= STDERR; fd++)
		if (syscall2(SYS_fcntl, fd, F_GETFD) < 0)
			syscall4(SYS_openat, AT_FDCWD, "/dev/console", O_RDWR, 0);

	say_hello();
	if (value_of(environment, "pyvmm_echo"))
		echo_lines();
	print_lines(number_in(value_of(environment, "pyvmm_lines")));
	print_spam(number_in(value_of(environment, "pyvmm_spam")));
	status = value_of(environment, "pyvmm_status");
	if (status) {
		syscall3(SYS_ioctl, STDOUT, TCSBRK, 1);
		end_with_status((unsigned char)number_in(status));
		put_text("pyvmm: init may not use the status port\n");
		flush();
	}
	end(value_of(environment, "pyvmm_end"));
	__builtin_unreachable();
}
