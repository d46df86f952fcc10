/* A small HTTP server on descriptor 3, one connection at a time. SIGTERM: finish, leave. It says READY=1.
 *
 * Variables for tests: START_DELAY=SECONDS makes it slow to start; if BROKEN=FILE exists, it cannot
 * start; IN_FLIGHT=FILE is written when /slow is being answered. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static int bell[2];

static void ring(int signal) {
    (void)signal;
    (void)!write(bell[1], "", 1);
}

static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

static void say(const char *text) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *path = variable("NOTIFY_SOCKET");
    size_t length = strlen(path);
    if (length == 0 || length >= sizeof address.sun_path)
        return;
    memcpy(address.sun_path, path, length);
    if (path[0] == '@')
        address.sun_path[0] = 0;
    int line = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sendto(line, text, strlen(text), MSG_NOSIGNAL, (struct sockaddr *)&address,
           offsetof(struct sockaddr_un, sun_path) + length);
    close(line);
}

static void answer(int connection) {
    char request[4096], response[512];
    size_t length = 0;
    do {
        ssize_t more = recv(connection, request + length, sizeof request - 1 - length, 0);
        if (more <= 0)
            return;
        length += (size_t)more;
        request[length] = 0;
    } while (!strstr(request, "\r\n\r\n") && length < sizeof request - 1);
    if (!strncmp(request, "GET /slow ", 10)) {
        close(open(variable("IN_FLIGHT"), O_CREAT | O_WRONLY, 0600));
        struct timespec left = {.tv_sec = 1};
        while (nanosleep(&left, &left))
            ;
    } else if (!strncmp(request, "GET /block ", 11)) {
        for (;;)
            pause();
    }
    int size = snprintf(response, sizeof response,
                        "HTTP/1.1 200 OK\r\nContent-Length: 12\r\nConnection: close\r\n"
                        "x-prefork-generation: %s\r\nx-prefork-pid: %d\r\n\r\nHello from C",
                        variable("PREFORK_GENERATION"), (int)getpid());
    send(connection, response, (size_t)size, MSG_NOSIGNAL);
}

int main(void) {
    if (!access(variable("BROKEN"), F_OK) || pipe2(bell, O_CLOEXEC | O_NONBLOCK))
        return 1;
    struct sigaction action = {.sa_handler = ring, .sa_flags = SA_RESTART};
    sigaction(SIGTERM, &action, NULL);
    fcntl(3, F_SETFL, fcntl(3, F_GETFL) | O_NONBLOCK);
    usleep((useconds_t)(1e6 * atof(variable("START_DELAY"))));
    say("READY=1");
    for (;;) {
        struct pollfd both[] = {{.fd = 3, .events = POLLIN}, {.fd = bell[0], .events = POLLIN}};
        poll(both, 2, -1);
        if (both[1].revents)
            break;
        /* Non-blocking: another worker may have taken the connection. */
        int connection = accept4(3, NULL, NULL, SOCK_CLOEXEC);
        if (connection >= 0) {
            answer(connection);
            close(connection);
        }
    }
    say("STOPPING=1");
    return 0;
}
