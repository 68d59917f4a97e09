/* A command's streams, between its pipes or its terminal and the frames, and its end. */

#include "protocol.h"

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

void feed(struct command *command)
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

void take_input(struct command *command, const u8 *data, u32 length)
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
int pass_on(struct command *command, int *fd, u8 type)
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
void read_report(struct command *command)
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
void grant_input(struct command *command)
{
	if (command->owed)
		send_number(MORE, command->id, command->owed);
	command->owed = 0;
}

/* A command that has ended: what it printed goes first, but nobody waits for what it left behind to print more. */
void finish(struct command *command)
{
	if (!command->gone || !command->started)
		return;
	if (pass_on(command, &command->output, STDOUT) || pass_on(command, &command->error, STDERR))
		return;
	send_number(EXITED, command->id, (u32)command->status);
	release(command);
}
