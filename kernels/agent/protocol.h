/* What the files of the protocol share: frames.c, command.c, streams.c, serve.c. */

#ifndef PROTOCOL_H
#define PROTOCOL_H

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

static inline void put32(u8 *at, u32 value)
{
	for (int i = 0; i < 4; i++)
		at[i] = (u8)(value >> 8 * i);
}

static inline u32 get32(const u8 *at)
{
	return at[0] | at[1] << 8 | at[2] << 16 | (u32)at[3] << 24;
}

static inline u16 get16(const u8 *at)
{
	return (u16)(at[0] | at[1] << 8);
}

/* frames.c */
extern int channel;
/* Bytes that frames may still have, headers among them. */
size_t room(void);
/* Whether frames wait to be written out, and whether there is room for the small ones of a command. */
int frames_wait(void);
int small_frames_fit(void);
void forget_frames(void);
/* Write out what waits, as far as it goes; 0 when the host is gone. */
int flush(void);
/* A frame's payload, for the caller to fill. */
u8 *frame(u8 type, u32 id, u32 length);
void send_number(u8 type, u32 id, u32 number);
void send_failed(u32 id, long error, u32 what);
void send_ready(void);

/* command.c */
extern struct command commands[COMMANDS];
/* The command of that id, 0 if there is none; of id 0, a free place. */
struct command *find(u32 id);
/* Close *fd if it is open. */
void drop(int *fd);
void make_nonblocking(int fd);
void release(struct command *command);
/* Start what the payload of EXEC says, with what it does not say of the environment from environment. */
void exec(u32 id, u8 *payload, u32 length, char **environment);

/* streams.c */
void feed(struct command *command);
void take_input(struct command *command, const u8 *data, u32 length);
int pass_on(struct command *command, int *fd, u8 type);
void read_report(struct command *command);
void grant_input(struct command *command);
void finish(struct command *command);

#endif
