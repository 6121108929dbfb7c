/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Where somebody wants to hear of what happens, as a socket tells it, and whose cgroup. Maps are the includer's. */
#ifndef FILTER_H
#define FILTER_H

/* What is not told. portwatch/engines/places.py has the same: change both together. */
enum filter_flag {
	FILTER_TREES = 1 << 0,	/* what concerns no watched tree */
	FILTER_PORTS = 1 << 1,	/* what is on none of these ports */
	FILTER_NETNS = 1 << 2,	/* what is in none of these */
	FILTER_NO_TCP = 1 << 3,
	FILTER_NO_UDP = 1 << 4,
	FILTER_EXCLUDED_NETNS = 1 << 5,	/* what is in one of these */
	FILTER_CGROUPS = 1 << 6,	/* what those do who live in one of these, and the closes of what they opened */
};

#define NAMESPACES_MAX 8
#define CGROUPS_MAX 4096	/* a power of two: by an id's last bits */

struct filter {
	__u64 ports[65536 / 64];		/* a bit for each */
	__u32 namespaces[NAMESPACES_MAX];	/* inodes, and 0 where there are fewer */
	__u32 generation;	/* another whenever a width is another */
	/* Each where its id belongs; one that another has pushed out is told of, and put in again. */
	__u64 excluded_cgroups[CGROUPS_MAX];
};

INLINE __u16 port_of(struct sock *sk)
{
	return READ(sk, __sk_common.skc_num);
}

/* A port that the kernel chose is given back before its listener closes: what it would send from, it keeps. */
INLINE __u16 last_port_of(struct sock *sk)
{
	struct inet_sock *inet = (void *)sk;
	__u16 port = port_of(sk);

	return port ? port : __builtin_bswap16(READ(inet, inet_sport));
}

INLINE bool is_among(const __u32 *namespaces, __u32 inode)
{
#pragma unroll(NAMESPACES_MAX)
	for (int i = 0; i < NAMESPACES_MAX; i++)
		if (namespaces[i] == inode)
			return true;
	return false;
}

/* Whether what happens to a socket on this port is told, whoever does it. */
INLINE bool filter_passes(const struct filter *filter, __u64 flags, struct sock *sk, __u16 port)
{
	if (flags & FILTER_PORTS && !(filter->ports[port / 64] >> port % 64 & 1))
		return false;
	if (flags & (is_udp(sk) ? FILTER_NO_UDP : FILTER_NO_TCP))
		return false;
	/* Asked apart: compared with what is wanted, the answer made the verifier take four times as long. */
	if (flags & FILTER_EXCLUDED_NETNS && is_among(filter->namespaces, netns_of(sk)))
		return false;
	return !(flags & FILTER_NETNS) || is_among(filter->namespaces, netns_of(sk));
}

/* Whether a process lives where nobody wants to hear of, as far as the reader has found out. */
INLINE bool is_in_excluded_cgroup(const struct filter *filter, struct task_struct *task)
{
	struct css_set *cgroups = READ(task, cgroups);
	__u64 id = id_of_cgroup(READ(cgroups, dfl_cgrp));

	return filter->excluded_cgroups[id % CGROUPS_MAX] == id;
}

#endif
