/* The virtio port by which the host is reached: found by its name in sysfs (Linux drivers/char/virtio_console.c). */

#include "agent.h"

enum { PATIENCE = 10000 }; /* milliseconds */

/* The device node of the virtio port that has this name, by sysfs; 0 if there is none (yet). */
static int find_port(const char *wanted, char *path, size_t size)
{
	static char entries[4096] __attribute__((aligned(8)));
	static const char class[] = "/sys/class/virtio-ports";
	long directory = sys_open(class, O_RDONLY | O_DIRECTORY, 0), got;
	int found = 0;

	if (directory < 0)
		return 0;
	while (!found && (got = syscall3(SYS_getdents64, directory, entries, sizeof(entries))) > 0)
		for (long at = 0; at < got && !found;) {
			struct dirent64 *entry = (struct dirent64 *)(entries + at);
			char name[128], file[256] = "";

			at += entry->length;
			if (entry->name[0] == '.')
				continue;
			append(file, sizeof(file), class);
			append(file, sizeof(file), "/");
			append(file, sizeof(file), entry->name);
			append(file, sizeof(file), "/name");
			if (read_file(file, name, sizeof(name)) < 0)
				continue;
			for (char *end = name; *end; end++)
				if (*end == '\n')
					*end = 0;
			if (same(name, wanted)) {
				path[0] = 0;
				append(path, size, "/dev/");
				found = append(path, size, entry->name);
			}
		}
	sys_close((int)directory);
	return found;
}

long open_port(const char *name)
{
	char path[256];

	for (int waited = 0, step = 1; waited < PATIENCE; waited += step, step += step < 50) {
		if (find_port(name, path, sizeof(path))) {
			long fd = sys_open(path, O_RDWR | O_NONBLOCK | O_NOCTTY, 0);

			if (fd >= 0)
				return fd;
		}
		nap(step);
	}
	return -ENODEV;
}
