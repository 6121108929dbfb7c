/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* The record that the kernel side and portwatch/record.py share: change both together. */
#ifndef PORTWATCH_H
#define PORTWATCH_H

enum portwatch_kind {
	PORTWATCH_OPEN = 1,	/* a TCP socket began to listen, a UDP socket was bound */
	PORTWATCH_CLOSE,	/* it ceased to; also sent for sockets that never were open */
	PORTWATCH_BACKLOG,	/* listen() again on a listener */
	PORTWATCH_BIND_FAILED,
	PORTWATCH_LISTEN_FAILED,
	PORTWATCH_HELD,		/* snapshot: this process holds this socket */
};

enum portwatch_flag {
	PORTWATCH_V6ONLY = 1 << 0,
	PORTWATCH_MPTCP = 1 << 1,
	PORTWATCH_PORT_CHOSEN = 1 << 2,	/* by the program, not by the kernel */
};

struct portwatch_record {
	__u64 time;		/* CLOCK_MONOTONIC, ns */
	__u64 cookie;
	__u64 sock;		/* struct sock *, from hooks that cannot ask for the cookie */
	__u64 inode;
	__u64 cgroup;		/* id of the task's cgroup v2 directory */
	__u64 start;		/* start_boottime of the process, ns */
	__u64 trees;		/* the watched trees that the process belongs to, a bit for each */
	__u32 netns;		/* of the socket, which need not be the task's */
	__u32 pid;		/* of the process, not of the thread */
	__u32 ns_pid;		/* the same, as its own pid namespace counts */
	__u32 uid;
	__u32 backlog;
	__s32 error;		/* negative errno of a failed call, else 0 */
	__u16 kind;
	__u16 family;
	__u16 protocol;		/* MPTCP's is 262: more than a byte holds */
	__u16 port;
	__u8 address[16];	/* IPv4 in the first four bytes */
	__u32 flags;
	__u32 state;		/* TCP_LISTEN, TCP_ESTABLISHED, ...; UDP uses them too */
	char device[16];
	char comm[16];		/* of the process' leader */
	char leaf[88];		/* the name of the cgroup that says most: see capture.h */
};

#endif
