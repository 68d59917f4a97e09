/* The protocol: frames from and to the host, and the commands that run meanwhile.
 *
 * A frame is a header of 12 bytes, little endian, and a payload:
 *
 *   u8 type, u8 0, u16 0, u32 id, u32 length
 *
 * The id is the command's, chosen by the host.  Either side may send at most as many bytes of a command's streams as
 * the other has granted it: at the start STDIN_WINDOW to the host and OUTPUT_WINDOW to the agent, and more by WINDOW.
 * So a command that does not read, or a host that does not, holds up only itself.
 *
 *   host to agent
 *   1 EXEC      u32 flags (1: on a terminal), u16 rows, u16 columns, u32 arguments, u32 variables; then texts that each
 *               end with a zero: the working directory or "", the arguments, the variables NAME=VALUE
 *   2 STDIN     data; without any: the end of standard input
 *   3 SIGNAL    u32: for the command's process group
 *   4 WINDOW    u32: so many more bytes of output may come
 *   5 RESIZE    u16 rows, u16 columns of the terminal
 *   6 KILL      the host does not care for the command any more: its process group is killed
 *   7 SHUTDOWN  end all processes, write everything out, switch off
 *   8 PING      answered by READY
 *
 *   agent to host
 *   65 READY    u32 version of the protocol, u32 process id; then the kernel's release and machine as texts
 *   66 STARTED  u32 process id
 *   67 STDOUT   data (of a terminal, all its output)
 *   68 STDERR   data
 *   69 WINDOW   u32: so many more bytes of standard input may come
 *   70 EXITED   i32: the exit status, or minus the signal; after all output
 *   71 FAILED   u32 errno, u32 what failed (0: to execute, 1: the working directory, 2: to start it at all)
 */

#include "agent.h"

enum { VERSION = 1, HEADER = 12, PAYLOAD = 64 * 1024, PIECE = 32 * 1024, STDIN_WINDOW = 64 * 1024,
       OUTPUT_WINDOW = 256 * 1024, SMALL_FRAMES = 4096, LARGEST_PIPE = 1024 * 1024, COMMANDS = 64, WORDS = 4096 };

enum { EXEC = 1, STDIN, SIGNAL, WINDOW, RESIZE, KILL, SHUTDOWN, PING };
enum { READY = 65, STARTED, STDOUT, STDERR, MORE, EXITED, FAILED };
enum { FAILED_EXEC, FAILED_DIRECTORY, FAILED_START };

/* A command; its descriptors are -1 when they are closed.  id 0: the place is free. */
struct command {
	u32 id;
	int pid;
	int input, output, error; /* of a terminal, input and output are its one side */
	int report; /* tells that it was executed (its end), or what failed: two numbers */
	int terminal, started, gone, ending; /* gone: it was reaped, with this status; ending: no more input will come */
	int silent; /* a terminal that nobody has open for now; closing our side would send SIGHUP to the command */
	int status;
	u32 credit; /* bytes of output that the host still takes */
	u32 owed; /* bytes of input that were taken, and not granted again */
	u32 left; /* once it has ended: bytes that its pipes may still hold */
	u32 begin, end; /* of what waits in pending */
	u8 *pending;
};

static struct command commands[COMMANDS];
static u8 buffers[COMMANDS][STDIN_WINDOW];
static u8 in[HEADER + PAYLOAD];
static size_t in_used;
static u8 out[4 * (HEADER + PAYLOAD)];
static size_t out_begin, out_end;
static int channel, is_port, children = -1;
static char **inherited;

static void put32(u8 *at, u32 value)
{
	for (int i = 0; i < 4; i++)
		at[i] = (u8)(value >> 8 * i);
}

static u32 get32(const u8 *at)
{
	return at[0] | at[1] << 8 | at[2] << 16 | (u32)at[3] << 24;
}

static u16 get16(const u8 *at)
{
	return (u16)(at[0] | at[1] << 8);
}

/* -- to the host ---------------------------------------------------------------------------------------- */

static size_t room(void)
{
	if (out_begin) {
		move(out, out + out_begin, out_end - out_begin);
		out_end -= out_begin;
		out_begin = 0;
	}
	return sizeof(out) - out_end;
}

/* Write out what waits, as far as it goes; 0 when the host is gone. */
static int flush(void)
{
	while (out_begin < out_end) {
		long done = sys_write(channel, out + out_begin, out_end - out_begin);

		if (done == -EAGAIN)
			return 1;
		if (done == -EINTR)
			continue;
		if (done <= 0)
			return 0;
		out_begin += (size_t)done;
	}
	out_begin = out_end = 0;
	return 1;
}

/* Begin a frame whose payload the caller puts behind it.  Output is only read while there is room for it and for the
 * few small frames of each command, so that those fit whatever the host does. */
static u8 *frame(u8 type, u32 id, u32 length)
{
	u8 *at;

	while (room() < HEADER + length) { /* a host that starts and pings without ever reading: it has to wait */
		struct pollfd poll = { channel, POLLOUT, 0 };

		syscall5(SYS_ppoll, &poll, 1, 0, 0, 0);
		if (!flush() || poll.revents & (POLLHUP | POLLERR))
			out_begin = out_end = 0; /* nobody is there to read it */
	}
	at = out + out_end;
	at[0] = type;
	at[1] = at[2] = at[3] = 0;
	put32(at + 4, id);
	put32(at + 8, length);
	out_end += HEADER + length;
	return at + HEADER;
}

static void send_number(u8 type, u32 id, u32 number)
{
	put32(frame(type, id, 4), number);
}

static void send_failed(u32 id, long error, u32 what)
{
	u8 *at = frame(FAILED, id, 8);

	put32(at, (u32)-error);
	put32(at + 4, what);
}

static void send_ready(void)
{
	struct utsname name;
	size_t release, machine;
	u8 *at;

	syscall1(SYS_uname, &name);
	release = length_of(name.release) + 1;
	machine = length_of(name.machine) + 1;
	at = frame(READY, 0, (u32)(8 + release + machine));
	put32(at, VERSION);
	put32(at + 4, (u32)syscall0(SYS_getpid));
	copy(at + 8, name.release, release);
	copy(at + 8 + release, name.machine, machine);
}

/* -- commands ------------------------------------------------------------------------------------------- */

static struct command *find(u32 id)
{
	for (int i = 0; i < COMMANDS; i++)
		if (commands[i].id == id)
			return &commands[i];
	return 0;
}

static void drop(int *fd)
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
static void release(struct command *command)
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

static void make_nonblocking(int fd)
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

/* The environment of a command: ours, with its own variables in the place of those of the same name. */
static int merge(char **merged, char **own, u32 count)
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

static void exec(u32 id, u8 *payload, u32 length)
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
	if (!merge(merged, own, variables))
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

/* -- a command's streams -------------------------------------------------------------------------------- */

/* Nobody reads the command's input any more: what waits for it is taken, so that the host does not wait in vain. */
static void discard_input(struct command *command)
{
	u32 waiting = command->end - command->begin;

	command->begin = command->end = 0;
	command->owed += waiting;
	if (!command->terminal)
		drop(&command->input);
	command->input = -1;
}

static void feed(struct command *command)
{
	while (command->begin < command->end) {
		long done = sys_write(command->input, command->pending + command->begin, command->end - command->begin);

		if (done == -EAGAIN || done == -EINTR)
			break;
		if (done < 0) {
			discard_input(command);
			return;
		}
		command->begin += (u32)done;
		command->owed += (u32)done;
	}
	if (command->begin == command->end) {
		command->begin = command->end = 0;
		if (command->ending) {
			if (command->terminal) {
				u8 end_of_file = 4; /* Ctrl-D, as a person would end it */

				sys_write(command->input, &end_of_file, 1);
				command->input = -1;
			} else
				drop(&command->input);
		}
	}
}

static void take_input(struct command *command, const u8 *data, u32 length)
{
	if (!length) {
		command->ending = 1;
	} else if (command->input < 0) {
		command->owed += length;
		return;
	} else if (command->end - command->begin + length > STDIN_WINDOW) {
		sys_kill(-command->pid, SIGKILL); /* more than was granted: whatever this is, it is not ours */
		return;
	} else {
		if (command->end + length > STDIN_WINDOW) {
			move(command->pending, command->pending + command->begin, command->end - command->begin);
			command->end -= command->begin;
			command->begin = 0;
		}
		copy(command->pending + command->end, data, length);
		command->end += length;
	}
	if (command->input >= 0)
		feed(command);
}

/* Pass on output, as far as there is some, the host takes it and there is room; 0 when there is no more for now. */
static int pass_on(struct command *command, int *fd, u8 type)
{
	static u8 data[PIECE];
	u32 most = command->credit < PIECE ? command->credit : PIECE;
	long got;

	if (*fd < 0)
		return 0;
	if (!most || room() < HEADER + PIECE + SMALL_FRAMES)
		return 1;
	got = sys_read(*fd, data, most);
	if (got == -EAGAIN)
		return 0;
	if (got == -EINTR)
		return 1;
	if (got <= 0) { /* its end; of a terminal an error */
		if (command->terminal)
			command->silent = 1; /* programs close their streams before they exit: release() closes ours */
		else
			drop(fd);
		return 0;
	}
	copy(frame(type, command->id, (u32)got), data, (size_t)got);
	command->credit -= (u32)got;
	if (command->gone && (command->left -= command->left < got ? command->left : (u32)got) == 0)
		return 0; /* what comes now is from a process that it left behind */
	return 1;
}

/* Whether it was executed, or why not. */
static void read_report(struct command *command)
{
	u8 failure[8];
	long got = sys_read(command->report, failure, sizeof(failure));

	if (got == -EINTR || got == -EAGAIN)
		return;
	drop(&command->report);
	if (got == sizeof(failure)) {
		send_failed(command->id, -(long)get32(failure), get32(failure + 4));
		release(command);
		return;
	}
	command->started = 1;
	send_number(STARTED, command->id, (u32)command->pid);
}

/* Let the host send as much as was taken: one frame however many pieces it came in, so that this side never has to wait
 * for the host to read before it can go on reading itself. */
static void grant_input(struct command *command)
{
	if (command->owed)
		send_number(MORE, command->id, command->owed);
	command->owed = 0;
}

/* A command that has ended: what it printed goes first, but nobody waits for what it left behind to print more. */
static void finish(struct command *command)
{
	if (!command->gone || !command->started)
		return;
	if (pass_on(command, &command->output, STDOUT) || pass_on(command, &command->error, STDERR))
		return;
	send_number(EXITED, command->id, (u32)command->status);
	release(command);
}

/* -- what happens --------------------------------------------------------------------------------------- */

static void reap(void)
{
	u8 information[128 * 16];
	int status;
	long pid;

	while (sys_read(children, information, sizeof(information)) > 0)
		;
	while ((pid = syscall4(SYS_wait4, -1, &status, WNOHANG, 0)) > 0)
		for (int i = 0; i < COMMANDS; i++)
			if (commands[i].id && commands[i].pid == pid && !commands[i].gone) {
				commands[i].gone = 1;
				commands[i].left = 2 * LARGEST_PIPE;
				commands[i].status = status & 0x7f ? -(status & 0x7f) : status >> 8 & 0xff;
			}
}

static void end_commands(void)
{
	for (int i = 0; i < COMMANDS; i++)
		if (commands[i].id) {
			if (!commands[i].gone)
				sys_kill(-commands[i].pid, SIGKILL);
			release(&commands[i]);
		}
}

static void handle(u8 type, u32 id, u8 *payload, u32 length)
{
	struct command *command = id ? find(id) : 0;

	if (type == EXEC) {
		exec(id, payload, length);
	} else if (type == PING) {
		send_ready();
	} else if (type == SHUTDOWN) {
		end_commands();
		if (syscall0(SYS_getpid) == 1)
			power_off();
		sys_exit(0);
	} else if (!command) {
		; /* it has ended meanwhile */
	} else if (type == STDIN) {
		take_input(command, payload, length);
	} else if (type == SIGNAL && length == 4 && !command->gone) {
		sys_kill(-command->pid, (int)get32(payload));
	} else if (type == WINDOW && length == 4) {
		u32 more = get32(payload);

		command->credit = command->credit + more < more ? ~0u : command->credit + more;
	} else if (type == RESIZE && length == 4 && command->terminal && command->output >= 0) {
		struct winsize size = { get16(payload), get16(payload + 2), 0, 0 };

		sys_ioctl(command->output, TIOCSWINSZ, &size);
	} else if (type == KILL) {
		if (!command->gone)
			sys_kill(-command->pid, SIGKILL);
		command->credit = ~0u; /* what it printed is dropped by the host */
	}
}

/* Take in what came; 0 when the host is gone, or sends what is no frame. */
static int receive(void)
{
	long got = sys_read(channel, in + in_used, sizeof(in) - in_used);
	size_t at = 0;

	if (got == -EAGAIN || got == -EINTR)
		return 1;
	if (got <= 0)
		return 0;
	in_used += (size_t)got;
	while (in_used - at >= HEADER) {
		u32 length = get32(in + at + 8);

		if (length > PAYLOAD) {
			complain("the host sent what is no frame", "", 0);
			return 0;
		}
		if (in_used - at < HEADER + length)
			break;
		handle(in[at], get32(in + at + 4), in + at + HEADER, length);
		at += HEADER + length;
	}
	move(in, in + at, in_used - at);
	in_used -= at;
	return 1;
}

enum { FEED, TAKE_OUTPUT, TAKE_ERROR, READ_REPORT };

static struct pollfd polled[2 + 4 * COMMANDS];
static struct { struct command *command; int what; } meaning[2 + 4 * COMMANDS];
static int watched;

static void watch(struct command *command, int fd, short events, int what)
{
	polled[watched] = (struct pollfd){ fd, events, 0 };
	meaning[watched].command = command;
	meaning[watched++].what = what;
}

static void wait_for_something(void)
{
	struct timespec moment = { 0, 20 * 1000000 };
	int look = children < 0, output_fits = room() >= HEADER + PIECE + SMALL_FRAMES;

	watched = 0;
	watch(0, channel, (short)(POLLIN | (out_begin < out_end ? POLLOUT : 0)), 0);
	watch(0, children, POLLIN, 0);
	for (int i = 0; i < COMMANDS; i++) {
		struct command *command = &commands[i];

		if (!command->id)
			continue;
		if (command->report >= 0)
			watch(command, command->report, POLLIN, READ_REPORT);
		if (command->input >= 0 && command->begin < command->end)
			watch(command, command->input, POLLOUT, FEED);
		if (command->silent) { /* it may open its terminal again: look from time to time */
			command->silent = 0;
			look = 1;
		} else if (command->output >= 0 && command->credit && output_fits)
			watch(command, command->output, POLLIN, TAKE_OUTPUT);
		if (command->error >= 0 && command->credit && output_fits)
			watch(command, command->error, POLLIN, TAKE_ERROR);
	}
	/* Without signalfd (CONFIG_SIGNALFD=n) nothing tells of children's ends: look from time to time. */
	syscall5(SYS_ppoll, polled, watched, look ? &moment : 0, 0, 0);
}

/* Until somebody has the port's other end open; orphans do not wait meanwhile. */
static void await_host(void)
{
	struct pollfd poll = { channel, 0, 0 };
	struct timespec now = { 0, 0 };

	do {
		nap(50);
		reap();
		syscall5(SYS_ppoll, &poll, 1, &now, 0, 0);
	} while (poll.revents & (POLLHUP | POLLERR));
}

void serve(int descriptor, int port, char **environment)
{
	u64 mask = SIGNAL_BIT(SIGCHLD) | SIGNAL_BIT(SIGPIPE);

	channel = descriptor;
	is_port = port;
	inherited = environment;
	syscall3(SYS_fcntl, channel, F_SETFD, FD_CLOEXEC);
	make_nonblocking(channel);
	syscall4(SYS_rt_sigprocmask, SIG_BLOCK, &mask, 0, 8);
	mask = SIGNAL_BIT(SIGCHLD);
	children = (int)syscall4(SYS_signalfd4, -1, &mask, 8, O_CLOEXEC | O_NONBLOCK);
	send_ready();
	for (;;) {
		int there = flush();

		if (there) {
			wait_for_something();
			if (children < 0 || polled[1].revents)
				reap();
			for (int i = 2; i < watched; i++) {
				struct command *command = meaning[i].command;

				if (!polled[i].revents || !command->id)
					continue;
				if (meaning[i].what == READ_REPORT)
					read_report(command);
				else if (meaning[i].what == FEED && command->input >= 0)
					feed(command);
				else if (meaning[i].what == TAKE_OUTPUT)
					pass_on(command, &command->output, STDOUT);
				else if (meaning[i].what == TAKE_ERROR)
					pass_on(command, &command->error, STDERR);
			}
			if (polled[0].revents & (POLLIN | POLLHUP | POLLERR))
				there = receive();
			for (int i = 0; i < COMMANDS; i++)
				if (commands[i].id && out_end - out_begin < sizeof(out) - SMALL_FRAMES) {
					grant_input(&commands[i]);
					finish(&commands[i]);
				}
		}
		if (!there) { /* of a port, the host may come back */
			end_commands();
			in_used = out_begin = out_end = 0;
			if (!is_port)
				return;
			await_host();
			send_ready();
		}
	}
}
