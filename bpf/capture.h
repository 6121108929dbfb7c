/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Functions that fill a record: from a socket, from the address that a failed bind() requested, from a task. */
#ifndef CAPTURE_H
#define CAPTURE_H

#define NETDEV_CHAIN_MAX 16	/* how many entries of a hash chain are searched for a device */

/* Copies the device's name. User space may have no access to the socket's network namespace to look it up. */
INLINE void capture_device(struct portwatch_record *record, struct sock *sk, int ifindex)
{
	struct net *net = READ(sk, __sk_common.skc_net.net);
	struct hlist_head *chain = READ(net, dev_index_head) + (ifindex & (NETDEV_HASHENTRIES - 1));
	struct hlist_node *node = READ(chain, first);

	/* Verifiers before 5.3 reject loops. */
#pragma unroll(NETDEV_CHAIN_MAX)
	for (int i = 0; i < NETDEV_CHAIN_MAX && node; i++) {
		struct net_device *device =
			(void *)((char *)node - OFFSET_OF(struct net_device, index_hlist));
		if (READ(device, ifindex) == ifindex) {
			READ_INTO(record->device, device, name);
			return;
		}
		node = READ(node, next);
	}
}

INLINE void capture_socket(struct portwatch_record *record, struct sock *sk)
{
	struct sock_common *common = (void *)sk;
	int ifindex = READ(sk, __sk_common.skc_bound_dev_if);

	record->inode = inode_of(READ(sk, sk_socket));
	record->netns = netns_of(sk);
	record->family = READ(sk, __sk_common.skc_family);
	record->protocol = protocol_of(sk);
	record->port = port_of(sk);
	record->state = READ(sk, __sk_common.skc_state);
	if (record->family == AF_INET6) {
		READ_INTO(record->address, sk, __sk_common.skc_v6_rcv_saddr);
		if (READ_BITS(common, skc_ipv6only))
			record->flags |= PORTWATCH_V6ONLY;
	} else {
		READ_INTO(record->address, sk, __sk_common.skc_rcv_saddr);
	}
	if (program_chose_port(sk))
		record->flags |= PORTWATCH_PORT_CHOSEN;
	if (record->state == TCP_LISTEN)
		record->backlog = backlog_of(sk);
	if (record->protocol == IPPROTO_MPTCP || is_subflow(sk))
		record->flags |= PORTWATCH_MPTCP;
	if (ifindex)
		capture_device(record, sk, ifindex);
}

/* Replaces the socket's address in the record by the address that a failed bind() requested. */
INLINE void capture_requested_address(struct portwatch_record *record, struct sock *sk,
				      const struct sockaddr_any *requested)
{
	record->port = __builtin_bswap16(requested->port);
	record->family = requested->family == AF_INET6 ? AF_INET6 : AF_INET;
	if (record->family == AF_INET6) {
		__builtin_memcpy(record->address, requested->v6.address, sizeof(requested->v6.address));
		if (requested->v6.scope_id)
			capture_device(record, sk, requested->v6.scope_id);
	} else {
		__builtin_memset(record->address, 0, sizeof(record->address));
		__builtin_memcpy(record->address, requested->v4.address, sizeof(requested->v4.address));
	}
}

INLINE void capture_task(struct portwatch_record *record, struct task_struct *task)
{
	struct task_struct *leader = READ(task, group_leader);
	struct pid *pid = READ(leader, thread_pid);
	struct cred *cred = READ(task, cred);
	struct css_set *cgroups = READ(task, cgroups);
	struct cgroup *v2 = READ(cgroups, dfl_cgrp);
	struct cgroup *most_specific = most_specific_cgroup(cgroups, v2);
	struct kernfs_node *leaf = READ(most_specific, kn);
	/* numbers[] has level + 1 entries. The last one is the pid in the task's own pid namespace. */
	struct upid *upid = (void *)((char *)&pid->numbers[0] +
						 READ(pid, level) * SIZE_OF(struct upid));

	record->pid = READ(task, tgid);
	record->ns_pid = READ(upid, nr);
	record->start = READ(leader, start_boottime);
	record->uid = READ(cred, uid.val);
	record->cgroup = id_of_cgroup(v2);
	READ_INTO(record->comm, leader, comm);
	bpf_probe_read_kernel_str(record->leaf, sizeof(record->leaf), READ(leaf, name));
}

INLINE void capture(struct portwatch_record *record, enum portwatch_kind kind, struct sock *sk)
{
	__builtin_memset(record, 0, sizeof(*record));
	record->time = bpf_ktime_get_ns();
	record->kind = kind;
	capture_socket(record, sk);
	capture_task(record, this_task());
}

#endif
