/* What a network card does for the guest, over one TCP connection to a server on the host.
 *
 *   netio HOST PORT send|receive|ping COUNT
 *
 * The first bytes tell the server what is wanted: a letter (s, r, p) and COUNT, 8 bytes, little-endian.  send and
 * receive move COUNT MiB; what was sent is counted once the server has answered with a byte that all of it came.
 * ping sends a byte COUNT times and waits for it to come back each time.  Prints "COUNT SECONDS".  It is for
 * scripts/bench, which builds it with the C library, statically.
 */

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 16];

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void failed(const char *what)
{
    perror(what);
    exit(1);
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        fprintf(stderr, "netio HOST PORT send|receive|ping COUNT\n");
        return 2;
    }
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[2])) };
    inet_pton(AF_INET, argv[1], &address.sin_addr);
    char what = argv[3][0];
    uint64_t count = strtoull(argv[4], NULL, 0);
    int one = 1;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address))
        failed("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);

    double started = now();
    char head[9] = { what };
    memcpy(head + 1, &count, 8);
    if (write(fd, head, sizeof head) != sizeof head)
        failed("write");
    if (what == 'p') {
        for (uint64_t done = 0; done < count; done++)
            if (write(fd, buffer, 1) != 1 || read(fd, buffer, 1) != 1)
                failed("ping");
    } else {
        for (uint64_t left = count << 20; left;) {
            size_t part = left < sizeof buffer ? left : sizeof buffer;
            ssize_t moved = what == 's' ? write(fd, buffer, part) : read(fd, buffer, part);
            if (moved <= 0)
                failed(argv[3]);
            left -= moved;
        }
        if (what == 's' && read(fd, buffer, 1) != 1)
            failed("answer");
    }
    printf("%llu %.6f\n", (unsigned long long)count, now() - started);
    return 0;
}
