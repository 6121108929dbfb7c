/* SPDX-License-Identifier: Apache-2.0 */
/* Reads lines "NAME COUNT", performs operation NAME COUNT times, and prints the total time in nanoseconds. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAIRS_MAX 400

static int listener;
static struct sockaddr_in server = { .sin_family = AF_INET };

static int checked(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
	return result;
}

static long long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* Uses another address each time, so that the kernel finds a free local port at once. */
static struct sockaddr *next_address(void)
{
	static unsigned int turn;

	server.sin_addr.s_addr = htonl(0x7f000001 + turn++ % 200);
	return (struct sockaddr *)&server;
}

static void connect_pair(int *client, int *accepted)
{
	*client = checked(socket(AF_INET, SOCK_STREAM, 0), "socket");
	checked(connect(*client, next_address(), sizeof(server)), "connect");
	*accepted = checked(accept(listener, NULL, NULL), "accept");
}

static long long tcp_close(int count)
{
	int clients[PAIRS_MAX], accepted[PAIRS_MAX];
	long long start;

	if (count > PAIRS_MAX)
		exit(2);
	for (int i = 0; i < count; i++)
		connect_pair(&clients[i], &accepted[i]);
	start = now();
	for (int i = 0; i < count; i++) {
		close(clients[i]);
		close(accepted[i]);
	}
	return now() - start;
}

static long long tcp_connection(int count)
{
	long long start = now();

	for (int i = 0; i < count; i++) {
		int client, accepted;

		connect_pair(&client, &accepted);
		close(client);
		close(accepted);
	}
	return now() - start;
}

static long long udp_connected(int count)
{
	long long start = now();

	for (int i = 0; i < count; i++) {
		int fd = checked(socket(AF_INET, SOCK_DGRAM, 0), "socket");

		checked(connect(fd, next_address(), sizeof(server)), "connect");
		close(fd);
	}
	return now() - start;
}

static long long getppid_call(int count)
{
	long long start = now();

	for (int i = 0; i < count; i++)
		syscall(SYS_getppid);
	return now() - start;
}

static long long listen_close(int count)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(8080) };
	long long start = now();

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	for (int i = 0; i < count; i++) {
		int fd = checked(socket(AF_INET, SOCK_STREAM, 0), "socket");

		checked(bind(fd, (struct sockaddr *)&address, sizeof(address)), "bind");
		checked(listen(fd, 16), "listen");
		close(fd);
	}
	return now() - start;
}

static long long fork_exit(int count)
{
	long long start = now();

	for (int i = 0; i < count; i++) {
		pid_t child = checked(fork(), "fork");

		if (!child)
			_exit(0);
		checked(waitpid(child, NULL, 0), "waitpid");
	}
	return now() - start;
}

static const struct {
	const char *name;
	long long (*run)(int count);
} workloads[] = {
	{ "tcp_close", tcp_close },
	{ "tcp_connection", tcp_connection },
	{ "udp_connected", udp_connected },
	{ "getppid", getppid_call },
	{ "listen_close", listen_close },
	{ "fork_exit", fork_exit },
};

int main(void)
{
	socklen_t length = sizeof(server);
	char name[32];
	int count;

	listener = checked(socket(AF_INET, SOCK_STREAM, 0), "socket");
	checked(bind(listener, (struct sockaddr *)&server, sizeof(server)), "bind");
	checked(listen(listener, PAIRS_MAX), "listen");
	checked(getsockname(listener, (struct sockaddr *)&server, &length), "getsockname");
	while (scanf("%31s %d", name, &count) == 2) {
		for (size_t i = 0; i < sizeof(workloads) / sizeof(*workloads); i++)
			if (!strcmp(name, workloads[i].name))
				printf("%lld\n", workloads[i].run(count));
		fflush(stdout);
	}
	return 0;
}
