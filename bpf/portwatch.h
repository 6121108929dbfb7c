/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* The record that the programs send to user space. portwatch/record.py has its layout: change both together. */
#ifndef PORTWATCH_H
#define PORTWATCH_H

enum portwatch_kind {
	PORTWATCH_OPEN = 1,	/* a TCP socket entered LISTEN, or a UDP socket was bound */
	PORTWATCH_CLOSE,	/* the socket is no longer in LISTEN or bound; also sent if the socket was never open */
	PORTWATCH_BACKLOG,	/* listen() changed the backlog of a listener */
	PORTWATCH_BIND_FAILED,
	PORTWATCH_LISTEN_FAILED,
	PORTWATCH_HOLDER,	/* from the iterator: this process holds this socket */
};

enum portwatch_flag {
	PORTWATCH_V6ONLY = 1 << 0,
	PORTWATCH_MPTCP = 1 << 1,
	PORTWATCH_PORT_CHOSEN = 1 << 2,	/* the program chose the port; otherwise the kernel did */
};

struct portwatch_record {
	__u64 time;		/* CLOCK_MONOTONIC, ns */
	__u64 cookie;
	__u64 sock;		/* address of the struct sock; only from hooks that cannot create a cookie */
	__u64 inode;
	__u64 cgroup;		/* id of the process's v2 cgroup */
	__u64 start;		/* start_boottime of the process, ns */
	__u64 trees;		/* bit mask of the watched trees that the process belongs to */
	__u32 netns;		/* the socket's network namespace; the process may be in another one */
	__u32 pid;		/* id of the process (tgid), not of the thread */
	__u32 ns_pid;		/* the same process in its own pid namespace */
	__u32 uid;
	__u32 backlog;
	__s32 error;		/* negative errno of a failed call, else 0 */
	__u16 kind;
	__u16 family;
	__u16 protocol;		/* MPTCP is 262, so a byte is too small */
	__u16 port;
	__u8 address[16];	/* IPv4 in the first four bytes */
	__u32 flags;
	__u32 state;		/* TCP_LISTEN, TCP_ESTABLISHED, ...; UDP uses the same states */
	char device[16];
	char comm[16];		/* of the thread group leader */
	char leaf[88];		/* name of the cgroup that most_specific_cgroup() in task.h returns */
};

#endif
