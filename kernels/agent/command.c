/* The commands that run: how they are found, started and forgotten. */

#include "protocol.h"

struct command commands[COMMANDS];
static u8 buffers[COMMANDS][STDIN_WINDOW];

struct command *find(u32 id)
{
	for (int i = 0; i < COMMANDS; i++)
		if (commands[i].id == id)
			return &commands[i];
	return 0;
}

void drop(int *fd)
{
	if (*fd >= 0)
		sys_close(*fd);
	*fd = -1;
}

static void close_all(struct command *command)
{
	if (command->input != command->output)
		drop(&command->input);
	command->input = -1;
	drop(&command->output);
	drop(&command->error);
	drop(&command->report);
}

/* Whoever waits for this place may have it. */
void release(struct command *command)
{
	close_all(command);
	command->id = 0;
}

/* In the child: try program as it stands, or in each directory of PATH; returns why it cannot be executed. */
static long execute(char **arguments, char **environment)
{
	const char *path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
	long error = -ENOENT;

	for (const char *at = arguments[0]; *at; at++)
		if (*at == '/')
			return syscall3(SYS_execve, arguments[0], arguments, environment);
	if (!*arguments[0])
		return -ENOENT;
	for (char **each = environment; *each; each++)
		if (starts_with(*each, "PATH="))
			path = *each + 5;
	while (*path) {
		static char file[8192];
		size_t length = 0;
		long tried;

		while (path[length] && path[length] != ':')
			length++;
		if (length < sizeof(file)) {
			copy(file, path, length);
			file[length] = 0;
			if (append(file, sizeof(file), length ? "/" : "./") && append(file, sizeof(file), arguments[0])) {
				tried = syscall3(SYS_execve, file, arguments, environment);
				if (tried != -ENOENT && tried != -ENOTDIR)
					error = tried;
				if (error != -ENOENT && error != -EACCES)
					break;
			}
		}
		path += length + (path[length] == ':');
	}
	return error;
}

struct plan {
	const char *directory;
	char **arguments, **environment;
	int terminal;
	struct winsize size;
	int ends[3], report;
};

/* The child, from here to its program; does not return. */
static void become(struct plan *plan)
{
	u8 failure[8];
	u64 none = 0;
	long error = 0;
	u32 what = FAILED_EXEC;

	syscall0(SYS_setsid);
	for (int i = 0; i < 3; i++)
		syscall3(SYS_dup3, plan->ends[i], i, 0); /* our own are never below 3, and are closed when it is executed */
	if (plan->terminal)
		sys_ioctl(0, TIOCSCTTY, 0);
	syscall4(SYS_rt_sigprocmask, SIG_SETMASK, &none, 0, 8);
	if (*plan->directory) {
		error = syscall1(SYS_chdir, plan->directory);
		what = FAILED_DIRECTORY;
	}
	if (error >= 0) {
		what = FAILED_EXEC;
		error = execute(plan->arguments, plan->environment);
	}
	put32(failure, (u32)-error);
	put32(failure + 4, what);
	sys_write(plan->report, failure, sizeof(failure));
	sys_exit(127);
}

static int make_pipe(int fds[2])
{
	return (int)syscall2(SYS_pipe2, fds, O_CLOEXEC);
}

/* A terminal: ours[0] is our side, theirs the command's. */
static long make_terminal(int *ours, int *theirs, const struct winsize *size)
{
	char path[32] = "/dev/pts/";
	long fd = sys_open("/dev/ptmx", O_RDWR | O_NOCTTY, 0), done;
	int unlock = 0;
	u32 number;

	if (fd < 0)
		return fd;
	*ours = (int)fd;
	if ((done = sys_ioctl(*ours, TIOCSPTLCK, &unlock)) < 0 || (done = sys_ioctl(*ours, TIOCGPTN, &number)) < 0)
		return done;
	sys_ioctl(*ours, TIOCSWINSZ, size);
	append_number(path, sizeof(path), number);
	fd = sys_open(path, O_RDWR | O_NOCTTY, 0);
	*theirs = (int)fd;
	return fd;
}

void make_nonblocking(int fd)
{
	syscall3(SYS_fcntl, fd, F_SETFL, syscall3(SYS_fcntl, fd, F_GETFL, 0) | O_NONBLOCK);
}

static long start_command(struct command *command, struct plan *plan)
{
	int pairs[3][2] = { { -1, -1 }, { -1, -1 }, { -1, -1 } }, report[2] = { -1, -1 };
	long done = make_pipe(report);

	if (plan->terminal) {
		int ours = -1, theirs = -1;

		if (done >= 0)
			done = make_terminal(&ours, &theirs, &plan->size);
		for (int i = 0; i < 3; i++)
			plan->ends[i] = theirs;
		command->input = command->output = ours;
		pairs[0][0] = theirs; /* to be closed here */
	} else {
		for (int i = 0; i < 3 && done >= 0; i++)
			done = make_pipe(pairs[i]);
		plan->ends[0] = pairs[0][0];
		plan->ends[1] = pairs[1][1];
		plan->ends[2] = pairs[2][1];
		command->input = pairs[0][1];
		command->output = pairs[1][0];
		command->error = pairs[2][0];
	}
	command->report = report[0];
	plan->report = report[1];
	if (done >= 0)
		done = syscall5(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (done == 0)
		become(plan);
	drop(&pairs[0][0]);
	drop(&pairs[1][1]);
	drop(&pairs[2][1]);
	drop(&report[1]);
	if (done < 0) {
		close_all(command);
		return done;
	}
	command->pid = (int)done;
	make_nonblocking(command->output);
	make_nonblocking(command->input);
	if (command->error >= 0)
		make_nonblocking(command->error);
	return 0;
}

/* The text at *at, which ends before limit; 0 if there is none. */
static char *next_text(u8 **at, u8 *limit)
{
	char *text = (char *)*at;

	while (*at < limit && **at)
		++*at;
	if (*at >= limit)
		return 0;
	++*at;
	return text;
}

/* The environment of a command: inherited, with its own variables in the place of those of the same name. */
static int merge(char **merged, char **inherited, char **own, u32 count)
{
	size_t used = 0;

	for (char **each = inherited; *each && used < WORDS; each++) {
		int replaced = 0;

		for (u32 i = 0; i < count && !replaced; i++) {
			const char *a = *each, *b = own[i];

			while (*a && *a == *b && *a != '=')
				a++, b++;
			replaced = *a == '=' && *b == '=';
		}
		if (!replaced)
			merged[used++] = *each;
	}
	for (u32 i = 0; i < count && used < WORDS; i++)
		merged[used++] = own[i];
	merged[used] = 0;
	return used < WORDS;
}

void exec(u32 id, u8 *payload, u32 length, char **environment)
{
	static char *words[WORDS + 2], *own[WORDS + 1], *merged[WORDS + 1];
	u8 *at = payload + 16, *limit = payload + length;
	struct command *command = find(0);
	struct plan plan = { 0 };
	u32 arguments, variables;
	long done;

	if (!id || find(id))
		return; /* not a host that follows the protocol */
	if (length < 17 || !command) {
		send_failed(id, command ? -E2BIG : -EMFILE, FAILED_START);
		return;
	}
	plan.terminal = get32(payload) & 1;
	plan.size.rows = get16(payload + 4);
	plan.size.columns = get16(payload + 6);
	arguments = get32(payload + 8);
	variables = get32(payload + 12);
	plan.directory = next_text(&at, limit);
	if (!plan.directory || arguments < 1 || arguments > WORDS || variables > WORDS) {
		send_failed(id, -E2BIG, FAILED_START);
		return;
	}
	for (u32 i = 0; i < arguments; i++)
		if (!(words[i] = next_text(&at, limit)))
			return send_failed(id, -E2BIG, FAILED_START);
	words[arguments] = 0;
	for (u32 i = 0; i < variables; i++)
		if (!(own[i] = next_text(&at, limit)))
			return send_failed(id, -E2BIG, FAILED_START);
	if (!merge(merged, environment, own, variables))
		return send_failed(id, -E2BIG, FAILED_START);
	plan.arguments = words;
	plan.environment = merged;

	*command = (struct command){ .id = id, .input = -1, .output = -1, .error = -1, .report = -1,
				     .terminal = plan.terminal, .credit = OUTPUT_WINDOW,
				     .pending = buffers[command - commands] };
	done = start_command(command, &plan);
	if (done < 0) {
		command->id = 0;
		send_failed(id, done, FAILED_START);
	}
}
