/* What happens: the host's frames, commands that print, read and end, until the host is gone. */

#include "protocol.h"

static u8 in[HEADER + PAYLOAD];
static size_t in_used;
static int is_port, children = -1;
static char **inherited;

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
		exec(id, payload, length, inherited);
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
	watch(0, channel, (short)(POLLIN | (frames_wait() ? POLLOUT : 0)), 0);
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
				if (commands[i].id && small_frames_fit()) {
					grant_input(&commands[i]);
					finish(&commands[i]);
				}
		}
		if (!there) { /* of a port, the host may come back */
			end_commands();
			in_used = 0;
			forget_frames();
			if (!is_port)
				return;
			await_host();
			send_ready();
		}
	}
}
