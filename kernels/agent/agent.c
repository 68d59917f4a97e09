/* pyvmm's agent in the guest: runs commands for the host, over a virtio console port of its own.
 *
 * As the first process (/init of an initramfs) it brings the system up as far as commands need it, see boot.c; as any
 * other it only serves:
 *
 *   agent [PORT]        the virtio port of that name (org.pyvmm.agent)
 *   agent --fd NUMBER   a socket that it inherits
 *
 * frames.c describes the protocol.  It is freestanding: no C library, about 15 KiB, the same on every kernel.
 */

#include "agent.h"
#include "../start.h"

static char *first_environment[] = {
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "USER=root", "LOGNAME=root", 0,
};

static int number_in(const char *text)
{
	int number = 0;

	for (; *text >= '0' && *text <= '9' && number < 1000000; text++)
		number = number * 10 + *text - '0';
	return number;
}

void start(long *stack)
{
	char **arguments = (char **)(stack + 1), **environment = (char **)(stack + 1 + stack[0] + 1);
	int first = syscall0(SYS_getpid) == 1;
	const char *name = "org.pyvmm.agent";
	long channel;

	for (int fd = 0; fd <= 2; fd++)
		if (syscall3(SYS_fcntl, fd, F_GETFD, 0) < 0)
			syscall4(SYS_openat, AT_FDCWD, "/dev/console", O_RDWR, 0);
	if (!first && stack[0] == 3 && same(arguments[1], "--fd")) {
		serve(number_in(arguments[2]), 0, environment);
		sys_exit(0);
	}
	if (first) {
		boot();
		environment = first_environment;
	} else if (stack[0] > 1)
		name = arguments[1];
	channel = open_port(name);
	if (channel < 0) {
		complain("there is no virtio port named", name, 0);
		complain("the kernel needs CONFIG_VIRTIO_MMIO and CONFIG_VIRTIO_CONSOLE, built in or as modules that pyvmm"
			 " was told of", "", 0);
		if (first)
			power_off();
		sys_exit(1);
	}
	serve((int)channel, 1, environment);
	sys_exit(0);
	__builtin_unreachable();
}
