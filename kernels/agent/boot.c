/* The first process: mounts, modules, the root file system, and its end.
 *
 * The initramfs that the agent comes in may hold, in /pyvmm:
 *
 *   modules   a path a line: the modules to load, in that order
 *   root      KEY=VALUE lines: type (virtiofs, block, initramfs), source (a tag or a device), fstype, ro=1,
 *             and overlay=1 for a copy-on-write layer in memory; without the file the initramfs is the root
 *   mounts    "ro TAG PATH" or "rw TAG PATH": virtiofs directories to mount once the root is there
 */

#include "agent.h"

#define NEW_ROOT "/pyvmm/new"
#define LOWER "/pyvmm/lower"
#define LAYER "/pyvmm/layer"

enum { DEVICE_PATIENCE = 10000, END_PATIENCE = 2000 }; /* milliseconds */

static char text[256 * 1024];

static long mount_at(const char *source, const char *target, const char *type, u64 flags, const char *data)
{
	long done;

	sys_mkdir(target, 0755);
	done = sys_mount(source, target, type, flags, data);
	if (done < 0)
		complain("cannot mount", target, done);
	return done;
}

/* The file systems that programs expect of every system, below root. */
static void mount_system(const char *root)
{
	static const struct {
		const char *path, *type, *data;
		u64 flags;
	} wanted[] = {
		{ "/proc", "proc", 0, MS_NOSUID | MS_NODEV | MS_NOEXEC },
		{ "/sys", "sysfs", 0, MS_NOSUID | MS_NODEV | MS_NOEXEC },
		{ "/dev", "devtmpfs", "mode=0755", MS_NOSUID },
		{ "/dev/pts", "devpts", "mode=0620,ptmxmode=0666", MS_NOSUID | MS_NOEXEC },
		{ "/dev/shm", "tmpfs", "mode=1777", MS_NOSUID | MS_NODEV },
		{ "/run", "tmpfs", "mode=0755", MS_NOSUID | MS_NODEV },
		{ "/tmp", "tmpfs", "mode=1777", MS_NOSUID | MS_NODEV },
	};
	char path[64];

	for (size_t i = 0; i < sizeof(wanted) / sizeof(*wanted); i++) {
		path[0] = 0;
		append(path, sizeof(path), root);
		append(path, sizeof(path), wanted[i].path);
		mount_at(wanted[i].type, path, wanted[i].type, wanted[i].flags, wanted[i].data);
	}
	/* What shells and their users rely on; devtmpfs does not make them. */
	path[0] = 0;
	append(path, sizeof(path), root);
	append(path, sizeof(path), "/dev/fd");
	syscall3(SYS_symlinkat, "/proc/self/fd", AT_FDCWD, path);
}

/* Cut the next line off *rest; 0 at the end. */
static char *next_line(char **rest)
{
	char *line = *rest, *end = line;

	if (!*line)
		return 0;
	while (*end && *end != '\n')
		end++;
	*rest = *end ? end + 1 : end;
	*end = 0;
	return line;
}

static void load_modules(void)
{
	char *rest = text, *path;

	if (read_file("/pyvmm/modules", text, sizeof(text)) < 0)
		return;
	while ((path = next_line(&rest))) {
		long fd = sys_open(path, O_RDONLY, 0), done;

		done = fd < 0 ? fd : syscall3(SYS_finit_module, fd, "", 0);
		if (done < 0 && done != -EEXIST)
			complain("cannot load", path, done);
		if (fd >= 0)
			sys_close((int)fd);
	}
}

/* Mount a block device that may still have to appear, as type, or as whatever the kernel knows it to be. */
static long mount_block(const char *source, const char *target, const char *type, u64 flags)
{
	static char known[8192];
	char *rest = known, *line;
	long done = -ENODEV;

	for (int waited = 0; waited < DEVICE_PATIENCE; waited += 20) {
		long fd = sys_open(source, O_RDONLY, 0);

		if (fd >= 0) {
			sys_close((int)fd);
			break;
		}
		nap(20);
	}
	if (*type)
		return sys_mount(source, target, type, flags, 0);
	if (read_file("/proc/filesystems", known, sizeof(known)) < 0)
		return -ENODEV;
	while ((line = next_line(&rest)))
		if (*line == '\t') { /* the others begin with "nodev" */
			long tried = sys_mount(source, target, line + 1, flags, 0);

			if (tried >= 0)
				return 0;
			if (done == -ENODEV)
				done = tried;
		}
	return done;
}

static void give_up(const char *what, const char *detail, long error)
{
	complain(what, detail, error);
	power_off();
}

/* Mount the root that /pyvmm/root describes, and make it the root of this process and its children. */
static void change_root(void)
{
	static char setting[4096];
	const char *type = "", *source = "", *fstype = "", *place = NEW_ROOT;
	int read_only = 0, overlay = 0;
	char *rest = setting, *line;
	long done;

	if (read_file("/pyvmm/root", setting, sizeof(setting)) < 0)
		return;
	while ((line = next_line(&rest))) {
		if (starts_with(line, "type="))
			type = line + 5;
		else if (starts_with(line, "source="))
			source = line + 7;
		else if (starts_with(line, "fstype="))
			fstype = line + 7;
		else if (same(line, "ro=1"))
			read_only = 1;
		else if (same(line, "overlay=1"))
			overlay = 1;
		else
			complain("does not know of a root's", line, 0);
	}
	if (same(type, "initramfs"))
		return;
	if (!same(type, "virtiofs") && !same(type, "block"))
		give_up("does not know of a root of the type", type, 0);
	sys_mkdir(NEW_ROOT, 0755);
	if (overlay) {
		place = LOWER;
		sys_mkdir(LOWER, 0755);
	}
	if (same(type, "virtiofs"))
		done = sys_mount(source, place, "virtiofs", read_only ? MS_RDONLY : 0, 0);
	else
		done = mount_block(source, place, fstype, read_only ? MS_RDONLY : 0);
	if (done == -ENODEV && same(type, "virtiofs"))
		give_up("the kernel cannot mount the root: it has no virtiofs (CONFIG_VIRTIO_FS), or its module was not"
			" found", "", 0);
	if (done < 0)
		give_up("cannot mount the root", source, done);
	if (overlay) {
		done = mount_at("tmpfs", LAYER, "tmpfs", 0, "mode=0755");
		sys_mkdir(LAYER "/upper", 0755);
		sys_mkdir(LAYER "/work", 0755);
		if (done >= 0)
			done = sys_mount("overlay", NEW_ROOT, "overlay", 0,
					 "lowerdir=" LOWER ",upperdir=" LAYER "/upper,workdir=" LAYER "/work");
		if (done < 0)
			give_up("the kernel cannot lay a copy-on-write layer over the root: it has no overlayfs"
				" (CONFIG_OVERLAY_FS), or its module was not found", "", done);
	}
	mount_system(NEW_ROOT);
	/* The root of an initramfs cannot be exchanged, only covered (Documentation/filesystems/ramfs-rootfs-initramfs). */
	syscall1(SYS_chdir, NEW_ROOT);
	done = sys_mount(".", "/", 0, MS_MOVE, 0);
	if (done >= 0)
		done = syscall1(SYS_chroot, ".");
	if (done < 0)
		give_up("cannot change the root", "", done);
	syscall1(SYS_chdir, "/");
}

/* All directories on the way to path, and it. */
static void make_directories(char *path)
{
	for (char *at = path + 1; *at; at++)
		if (*at == '/') {
			*at = 0;
			sys_mkdir(path, 0755);
			*at = '/';
		}
	sys_mkdir(path, 0755);
}

static void mount_shares(char *lines)
{
	char *line;

	while ((line = next_line(&lines))) {
		char *tag = line + 3, *path = tag;
		long done;

		while (*path && *path != ' ')
			path++;
		if (!*path || !(starts_with(line, "ro ") || starts_with(line, "rw "))) {
			complain("cannot make sense of the mount", line, 0);
			continue;
		}
		*path++ = 0;
		make_directories(path);
		done = sys_mount(tag, path, "virtiofs", line[1] == 'o' ? MS_RDONLY : 0, 0);
		if (done < 0)
			complain("cannot mount the directory", path, done);
	}
}

static void loopback_up(void)
{
	struct ifreq request = { "lo", 0, "" };
	long fd = syscall3(SYS_socket, AF_INET, SOCK_DGRAM, 0);

	if (fd < 0)
		return; /* a kernel without a network */
	if (sys_ioctl((int)fd, SIOCGIFFLAGS, &request) >= 0) {
		request.flags |= IFF_UP;
		sys_ioctl((int)fd, SIOCSIFFLAGS, &request);
	}
	sys_close((int)fd);
}

void boot(void)
{
	static char mounts[64 * 1024];

	mount_system("");
	load_modules();
	if (read_file("/pyvmm/mounts", mounts, sizeof(mounts)) < 0)
		mounts[0] = 0;
	change_root();
	mount_shares(mounts);
	loopback_up();
	syscall2(SYS_sethostname, "pyvmm", 5);
}

void power_off(void)
{
	sys_kill(-1, SIGKILL);
	for (int waited = 0; waited < END_PATIENCE;) { /* what a process has open for writing keeps a file system busy */
		long ended = syscall4(SYS_wait4, -1, 0, WNOHANG, 0);

		if (ended < 0)
			break; /* there are none left */
		if (ended == 0) {
			nap(5);
			waited += 5;
		}
	}
	syscall0(SYS_sync);
	sys_mount(0, "/", 0, MS_REMOUNT | MS_RDONLY, 0); /* a disk's file system is clean then */
	syscall3(SYS_ioctl, 2, TCSBRK, 1); /* what the console's driver still holds would be lost */
	syscall3(SYS_reboot, REBOOT_MAGIC1, REBOOT_MAGIC2, REBOOT_POWER_OFF);
	for (;;)
		nap(1000000);
}
