/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * The kernel filter: the union of what all subscribers want, as far as a socket's own fields
 * and the cgroup of a task can decide it. It may pass too much, never too little.
 *
 * portwatch/engines/filter_map.py mirrors this file: change both together.
 */
#ifndef FILTER_H
#define FILTER_H

/* Each flag turns one part of the filter on. */
enum filter_flag {
	FILTER_TREES = 1 << 0,	/* pass only records about watched trees */
	FILTER_PORTS = 1 << 1,	/* pass only these ports */
	FILTER_NETNS = 1 << 2,	/* pass only these namespaces */
	FILTER_NO_TCP = 1 << 3,
	FILTER_NO_UDP = 1 << 4,
	FILTER_EXCLUDED_NETNS = 1 << 5,	/* pass all but these namespaces */
	FILTER_CGROUPS = 1 << 6,	/* drop what processes in these cgroups do, and closes of what they opened */
};

#define NAMESPACES_MAX 8
#define CGROUPS_MAX 4096	/* a power of two */

struct filter {
	__u64 ports[65536 / 64];		/* bit mask */
	__u32 namespaces[NAMESPACES_MAX];	/* inode numbers, padded with 0 */
	__u32 generation;	/* incremented with every change of the filter */
	/*
	 * A hash table of ids without chains. When two ids collide, the later one replaces the
	 * other, whose next record is sent and makes user space insert it again.
	 */
	__u64 excluded_cgroups[CGROUPS_MAX];
};

INLINE bool contains_netns(const __u32 *namespaces, __u32 inode)
{
#pragma unroll(NAMESPACES_MAX)
	for (int i = 0; i < NAMESPACES_MAX; i++)
		if (namespaces[i] == inode)
			return true;
	return false;
}

/* Evaluates the parts of a filter that depend on the socket alone, not on the acting process. */
INLINE bool matches_socket(const struct filter *filter, __u64 flags, struct sock *sk, __u16 port)
{
	if (flags & FILTER_PORTS && !(filter->ports[port / 64] >> port % 64 & 1))
		return false;
	if (flags & (is_udp(sk) ? FILTER_NO_UDP : FILTER_NO_TCP))
		return false;
	/* Two calls: one call compared with the expected result made the verifier take four times as long. */
	if (flags & FILTER_EXCLUDED_NETNS && contains_netns(filter->namespaces, netns_of(sk)))
		return false;
	return !(flags & FILTER_NETNS) || contains_netns(filter->namespaces, netns_of(sk));
}

/* True if user space has found that no subscriber wants the task's cgroup. */
INLINE bool is_in_excluded_cgroup(const struct filter *filter, struct task_struct *task)
{
	struct css_set *cgroups = READ(task, cgroups);
	__u64 id = id_of_cgroup(READ(cgroups, dfl_cgrp));

	return filter->excluded_cgroups[id % CGROUPS_MAX] == id;
}

#endif
