/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* The record that the programs send to user space. portwatch/record.py mirrors it: change both together. */
#ifndef PORTWATCH_H
#define PORTWATCH_H

enum portwatch_kind {
	PORTWATCH_OPEN = 1,	/* a TCP socket entered LISTEN, or a UDP socket was bound */
	PORTWATCH_CLOSE,	/* it no longer listens or is bound; also sent for sockets that never were open */
	PORTWATCH_BACKLOG,	/* listen() changed the backlog of a listener */
	PORTWATCH_BIND_FAILED,
	PORTWATCH_LISTEN_FAILED,
	PORTWATCH_HOLDER,	/* from the iterator: this process has this socket open */
};

enum portwatch_flag {
	PORTWATCH_V6ONLY = 1 << 0,
	PORTWATCH_MPTCP = 1 << 1,
	PORTWATCH_PORT_CHOSEN = 1 << 2,	/* by the program; otherwise by the kernel */
};

struct portwatch_record {
	__u64 time;		/* CLOCK_MONOTONIC, ns */
	__u64 cookie;
	__u64 sock;		/* struct sock *, from hooks that may not call bpf_get_socket_cookie() */
	__u64 inode;
	__u64 cgroup;		/* id of the process' cgroup v2 */
	__u64 start;		/* start_boottime of the process, ns */
	__u64 trees;		/* bit mask of the watched trees that the process belongs to */
	__u32 netns;		/* of the socket; the process may be in another */
	__u32 pid;		/* of the process (tgid), not of the thread */
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
	char leaf[88];		/* directory name of most_specific_cgroup() in capture.h */
};

#endif
