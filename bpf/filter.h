/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * The kernel filter decides which records are sent to user space. It is the union of all subscribers' filters,
 * in terms that the programs can evaluate: the socket's own fields, and the process trees and cgroup of the
 * acting process. It may pass a record that no subscriber wants, but never drops a wanted record.
 *
 * portwatch/engines/filter_map.py has the same flags and layout: change both together.
 */
#ifndef FILTER_H
#define FILTER_H

/* Each flag turns one part of the filter on. */
enum filter_flag {
	FILTER_TREES = 1 << 0,	/* pass only records about watched trees */
	FILTER_PORTS = 1 << 1,	/* pass only the ports in filter.ports */
	FILTER_NETNS = 1 << 2,	/* pass only the namespaces in filter.namespaces */
	FILTER_NO_TCP = 1 << 3,	/* drop TCP and MPTCP */
	FILTER_NO_UDP = 1 << 4,	/* drop UDP */
	FILTER_EXCLUDED_NETNS = 1 << 5,	/* drop the namespaces in filter.namespaces */
	FILTER_CGROUPS = 1 << 6,	/* drop records of excluded_cgroups, and closes of their sockets */
};

#define NAMESPACES_MAX 8
#define CGROUPS_MAX 4096	/* a power of two */

struct filter {
	__u64 ports[65536 / 64];		/* a bit for each port */
	__u32 namespaces[NAMESPACES_MAX];	/* inode numbers, padded with 0 */
	__u32 generation;	/* incremented by every change of the filter */
	/*
	 * A hash table of cgroup ids, with one id in each slot. When two ids need the same slot, the later one
	 * replaces the earlier one. The next record from the replaced cgroup is then sent, and user space
	 * inserts that id again.
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

/* True if the socket passes the parts of the filter that do not depend on the acting process. */
INLINE bool matches_socket(const struct filter *filter, __u64 flags, struct sock *sk, __u16 port)
{
	if (flags & FILTER_PORTS && !(filter->ports[port / 64] >> port % 64 & 1))
		return false;
	if (flags & (is_udp(sk) ? FILTER_NO_UDP : FILTER_NO_TCP))
		return false;
	/*
	 * contains_netns() is called twice here, because a single call, whose result was compared with a flag,
	 * took the verifier four times as long.
	 */
	if (flags & FILTER_EXCLUDED_NETNS && contains_netns(filter->namespaces, netns_of(sk)))
		return false;
	return !(flags & FILTER_NETNS) || contains_netns(filter->namespaces, netns_of(sk));
}

/* True if user space has excluded the task's cgroup, because no subscriber wants it. */
INLINE bool is_in_excluded_cgroup(const struct filter *filter, struct task_struct *task)
{
	struct css_set *cgroups = READ(task, cgroups);
	__u64 id = id_of_cgroup(READ(cgroups, dfl_cgrp));

	return filter->excluded_cgroups[id % CGROUPS_MAX] == id;
}

#endif
