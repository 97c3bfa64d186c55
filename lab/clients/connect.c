/* What an ordinary client does: resolves a name by its C library and connects at once to the first address. Prints the
 * address and after how many milliseconds the connection was there. connect NAME PORT */
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static double now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    struct addrinfo hints, *found;
    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    int error = getaddrinfo(argv[1], argv[2], &hints, &found);
    if (error) {
        printf("%s: %s\n", argv[1], gai_strerror(error));
        return 1;
    }
    char address[64];
    getnameinfo(found->ai_addr, found->ai_addrlen, address, sizeof address, NULL, 0, NI_NUMERICHOST);
    int connection = socket(found->ai_family, SOCK_STREAM, 0);
    double begin = now_ms();
    if (connection < 0 || connect(connection, found->ai_addr, found->ai_addrlen) < 0) {
        printf("%s %s: %s\n", argv[1], address, strerror(errno));
        return 1;
    }
    printf("%s %.0f\n", address, now_ms() - begin);
    close(connection);
    freeaddrinfo(found);
    return 0;
}
