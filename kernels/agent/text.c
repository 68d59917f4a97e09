/* Text, files and complaints, without a C library. */

#include "agent.h"

/* The compiler makes calls of these out of copies and initialisations. */
void *memcpy(void *to, const void *from, size_t size)
{
	u8 *target = to;
	const u8 *source = from;

	while (size--)
		*target++ = *source++;
	return to;
}

void *memset(void *to, int byte, size_t size)
{
	u8 *target = to;

	while (size--)
		*target++ = (u8)byte;
	return to;
}

void copy(void *to, const void *from, size_t size)
{
	memcpy(to, from, size);
}

/* To a lower address, where the two may overlap. */
void move(void *to, const void *from, size_t size)
{
	memcpy(to, from, size);
}

size_t length_of(const char *text)
{
	size_t length = 0;

	while (text[length])
		length++;
	return length;
}

int same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

int starts_with(const char *text, const char *start)
{
	while (*start && *text == *start)
		text++, start++;
	return !*start;
}

int append(char *text, size_t size, const char *more)
{
	size_t used = length_of(text), added = length_of(more);

	if (used + added >= size)
		return 0;
	copy(text + used, more, added + 1);
	return 1;
}

int append_number(char *text, size_t size, unsigned long number)
{
	char digits[21];
	int at = sizeof(digits) - 1;

	digits[at] = 0;
	do
		digits[--at] = (char)('0' + number % 10);
	while (number /= 10);
	return append(text, size, digits + at);
}

void complain(const char *what, const char *detail, long error)
{
	char line[1024] = "pyvmm-agent: ";

	append(line, sizeof(line) - 40, what);
	if (*detail) {
		append(line, sizeof(line) - 40, " ");
		append(line, sizeof(line) - 40, detail);
	}
	if (error < 0) {
		append(line, sizeof(line), ": error ");
		append_number(line, sizeof(line), (unsigned long)-error);
	}
	append(line, sizeof(line), "\n");
	sys_write(2, line, length_of(line));
}

long read_file(const char *path, char *data, size_t size)
{
	long fd = sys_open(path, O_RDONLY, 0), got;
	size_t used = 0;

	if (fd < 0)
		return fd;
	while (used < size - 1 && (got = sys_read((int)fd, data + used, size - 1 - used)) > 0)
		used += (size_t)got;
	data[used] = 0;
	sys_close((int)fd);
	return used == size - 1 ? -E2BIG : (long)used;
}
