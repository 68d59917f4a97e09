/* The protocol's frames, and those on their way to the host.
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

#include "protocol.h"

int channel;
static u8 out[4 * (HEADER + PAYLOAD)];
static size_t out_begin, out_end;

size_t room(void)
{
	if (out_begin) {
		move(out, out + out_begin, out_end - out_begin);
		out_end -= out_begin;
		out_begin = 0;
	}
	return sizeof(out) - out_end;
}

int frames_wait(void)
{
	return out_begin < out_end;
}

int small_frames_fit(void)
{
	return out_end - out_begin < sizeof(out) - SMALL_FRAMES;
}

void forget_frames(void)
{
	out_begin = out_end = 0;
}

/* Write out what waits, as far as it goes; 0 when the host is gone. */
int flush(void)
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
u8 *frame(u8 type, u32 id, u32 length)
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

void send_number(u8 type, u32 id, u32 number)
{
	put32(frame(type, id, 4), number);
}

void send_failed(u32 id, long error, u32 what)
{
	u8 *at = frame(FAILED, id, 8);

	put32(at, (u32)-error);
	put32(at + 4, what);
}

void send_ready(void)
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
