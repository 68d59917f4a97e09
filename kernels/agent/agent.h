/* What the agent's files share. */

#ifndef AGENT_H
#define AGENT_H

#include "../linux.h"

/* text.c */
size_t length_of(const char *text);
int same(const char *a, const char *b);
int starts_with(const char *text, const char *start);
void copy(void *to, const void *from, size_t size);
void move(void *to, const void *from, size_t size);
/* Append to text, which has room for size bytes, its end among them; 0 if it does not fit. */
int append(char *text, size_t size, const char *more);
int append_number(char *text, size_t size, unsigned long number);
/* A line on the console, or standard error: "pyvmm-agent: what detail: error -NUMBER". */
void complain(const char *what, const char *detail, long error);
/* The whole of a file of at most size - 1 bytes, with a zero after it; its length, or a negative errno. */
long read_file(const char *path, char *data, size_t size);

/* boot.c: what the first process has to do */
void boot(void);
/* Everything is written out, and the machine switched off. */
void power_off(void) __attribute__((noreturn));

/* port.c: open the virtio port of that name, waiting for its driver; a negative errno if there is none after some seconds. */
long open_port(const char *name);

/* serve.c: commands for the host, until the channel ends (which one of a virtio port, reopens, never does) */
void serve(int channel, int is_port, char **environment);

#endif
