/* What a disk does for the guest: requests of one size, one after the other, past the page cache.
 *
 *   blockio DISK read|write|randread|randwrite SIZE COUNT
 *
 * DISK is a block device, SIZE the bytes of a request, in whole pages.  Sequential requests start over at the end of
 * the disk; random ones come from a generator with a fixed seed, so that all machines see the same.  Prints "COUNT
 * SECONDS".  It is for scripts/bench, which builds it with the C library, statically.
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        fprintf(stderr, "blockio DISK read|write|randread|randwrite SIZE COUNT\n");
        return 2;
    }
    int random = strncmp(argv[2], "rand", 4) == 0;
    int writes = strcmp(argv[2] + 4 * random, "write") == 0;
    size_t size = strtoul(argv[3], NULL, 0);
    long count = strtol(argv[4], NULL, 0);
    int fd = open(argv[1], (writes ? O_WRONLY : O_RDONLY) | O_DIRECT);
    if (fd < 0) {
        perror(argv[1]);
        return 1;
    }
    uint64_t places = lseek(fd, 0, SEEK_END) / size;
    char *buffer = aligned_alloc(4096, size);
    if (!places || !buffer) {
        fprintf(stderr, "%s is too small for %zu bytes at a time\n", argv[1], size);
        return 1;
    }
    memset(buffer, 0x5a, size);
    uint64_t state = 88172645463325252; /* xorshift64, Marsaglia 2003 */
    double started = now();
    for (long done = 0; done < count; done++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        off_t offset = (random ? state % places : done % places) * size;
        ssize_t moved = writes ? pwrite(fd, buffer, size, offset) : pread(fd, buffer, size, offset);
        if (moved != (ssize_t)size) {
            perror(argv[2]);
            return 1;
        }
    }
    printf("%ld %.6f\n", count, now() - started);
    return 0;
}
