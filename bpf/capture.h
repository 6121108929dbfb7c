/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Fills a record from a socket, from an address that was asked for, and from a task. */
#ifndef CAPTURE_H
#define CAPTURE_H

#define NETDEV_CHAIN_MAX 16	/* devices of one hash chain that are looked at */

/* The name is the device's in the socket's namespace, which a reader may have no way into. */
INLINE void capture_device(struct portwatch_record *record, struct sock *sk, int ifindex)
{
	struct net *net = READ(sk, __sk_common.skc_net.net);
	struct hlist_head *chain = READ(net, dev_index_head) + (ifindex & (NETDEV_HASHENTRIES - 1));
	struct hlist_node *node = READ(chain, first);

	/* Verifiers before 5.3 take no loop at all. */
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

INLINE __u64 socket_inode(struct socket *socket)
{
	struct socket_alloc *alloc = (void *)socket;

	return socket ? READ(alloc, vfs_inode.i_ino) : 0;
}

INLINE __u32 protocol_of(struct sock *sk)
{
	return READ_BITS(sk, sk_protocol);
}

INLINE bool is_tcp(struct sock *sk)
{
	return protocol_of(sk) == IPPROTO_TCP;
}

/* Raw sockets have the protocol, too, and its number for a port. */
INLINE bool is_udp(struct sock *sk)
{
	return protocol_of(sk) == IPPROTO_UDP && READ_BITS(sk, sk_type) != SOCK_RAW;
}

INLINE bool is_ours(struct sock *sk)
{
	__u32 family = READ(sk, __sk_common.skc_family), protocol = protocol_of(sk);

	return (family == AF_INET || family == AF_INET6) &&
	       (protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_MPTCP) &&
	       READ_BITS(sk, sk_type) != SOCK_RAW;
}

/* Whether it is a TCP socket that serves an MPTCP socket. */
INLINE bool is_subflow(struct sock *sk)
{
	struct tcp_sock *tcp = (void *)sk;

	if (!is_tcp(sk))
		return false;
	/* Without CONFIG_MPTCP on some, and before 5.6 on all, there is no such field. */
	return HAS_FIELD(tcp, is_mptcp) && READ_BITS(tcp, is_mptcp);
}

/* Of a listener: for MPTCP's own socket its first subflow listens. */
INLINE struct sock *sock_that_listens(struct sock *sk)
{
	struct mptcp_sock *mptcp = (void *)sk;

	if (protocol_of(sk) == IPPROTO_MPTCP && HAS_FIELD(mptcp, first))
		return (void *)READ_BITS(mptcp, first);
	return sk;
}

INLINE __u32 backlog_of(struct sock *sk)
{
	struct sock *listening = sock_that_listens(sk);

	return READ(listening, sk_max_ack_backlog);
}

INLINE __u32 netns_of(struct sock *sk)
{
	struct net *net = READ(sk, __sk_common.skc_net.net);

	return READ(net, ns.inum);
}

INLINE void capture_socket(struct portwatch_record *record, struct sock *sk)
{
	struct sock_common *common = (void *)sk;
	int ifindex = READ(sk, __sk_common.skc_bound_dev_if);

	record->inode = socket_inode(READ(sk, sk_socket));
	record->netns = netns_of(sk);
	record->family = READ(sk, __sk_common.skc_family);
	record->protocol = protocol_of(sk);
	record->port = READ(sk, __sk_common.skc_num);
	record->state = READ(sk, __sk_common.skc_state);
	if (record->family == AF_INET6) {
		READ_INTO(record->address, sk, __sk_common.skc_v6_rcv_saddr);
		if (READ_BITS(common, skc_ipv6only))
			record->flags |= PORTWATCH_V6ONLY;
	} else {
		READ_INTO(record->address, sk, __sk_common.skc_rcv_saddr);
	}
	if (READ_BITS(sk, sk_userlocks) & SOCK_BINDPORT_LOCK)
		record->flags |= PORTWATCH_PORT_CHOSEN;
	if (record->state == TCP_LISTEN)
		record->backlog = backlog_of(sk);
	if (record->protocol == IPPROTO_MPTCP || is_subflow(sk))
		record->flags |= PORTWATCH_MPTCP;
	if (ifindex)
		capture_device(record, sk, ifindex);
}

/*
 * How much of an address can be read into a sockaddr_any. Of 64 bits: of 32, clang
 * compares a copy that it shifted, from which the verifier learns nothing.
 */
INLINE __u64 bounded(__u64 length)
{
	return length < sizeof(struct sockaddr_any) ? length : sizeof(struct sockaddr_any);
}

/* What a failed bind asked for: the socket itself did not get it. */
INLINE void capture_requested(struct portwatch_record *record, struct sock *sk, const struct sockaddr_any *asked)
{
	record->port = __builtin_bswap16(asked->port);
	record->family = asked->family == AF_INET6 ? AF_INET6 : AF_INET;
	if (record->family == AF_INET6) {
		__builtin_memcpy(record->address, asked->v6.address, sizeof(asked->v6.address));
		if (asked->v6.scope_id)
			capture_device(record, sk, asked->v6.scope_id);
	} else {
		__builtin_memset(record->address, 0, sizeof(record->address));
		__builtin_memcpy(record->address, asked->v4.address, sizeof(asked->v4.address));
	}
}

/*
 * The cgroup that says most of where a process is: on v1 and hybrid hosts, where v2's may be the
 * root for everybody, the one of the memory controller.
 */
INLINE struct cgroup *telling_cgroup(struct css_set *cgroups, struct cgroup *v2)
{
	struct cgroup_subsys_state *state = NULL;
	struct cgroup *memory;

	if (memory_controller() >= 0)
		bpf_probe_read_kernel(&state, sizeof(state),
				      (const char *)&cgroups->subsys[0] + memory_controller() * sizeof(state));
	if (!state)
		return v2;
	memory = READ(state, cgroup);
	return READ(memory, root) == READ(v2, root) ? v2 : memory;
}

/* An id is never given to another cgroup. */
INLINE __u64 id_of_cgroup(struct cgroup *cgroup)
{
	struct kernfs_node *kn = READ(cgroup, kn);

	return READ(kn, KERNFS_ID);
}

INLINE void capture_task(struct portwatch_record *record, struct task_struct *task)
{
	struct task_struct *leader = READ(task, group_leader);
	struct pid *pid = READ(leader, thread_pid);
	struct cred *cred = READ(task, cred);
	struct css_set *cgroups = READ(task, cgroups);
	struct cgroup *cgroup = READ(cgroups, dfl_cgrp);
	struct cgroup *telling = telling_cgroup(cgroups, cgroup);
	struct kernfs_node *leaf = READ(telling, kn);
	/* numbers[] has level + 1 entries, the task's own namespace last. */
	struct upid *upid = (void *)((char *)&pid->numbers[0] +
						 READ(pid, level) * SIZE_OF(struct upid));

	record->pid = READ(task, tgid);
	record->ns_pid = READ(upid, nr);
	record->start = READ(leader, start_boottime);
	record->uid = READ(cred, uid.val);
	record->cgroup = id_of_cgroup(cgroup);
	READ_INTO(record->comm, leader, comm);
	bpf_probe_read_kernel_str(record->leaf, sizeof(record->leaf), READ(leaf, name));
}

INLINE void capture(struct portwatch_record *record, enum portwatch_kind kind, struct sock *sk)
{
	__builtin_memset(record, 0, sizeof(*record));
	record->time = bpf_ktime_get_ns();
	record->kind = kind;
	capture_socket(record, sk);
	capture_task(record, (void *)bpf_get_current_task());
}

INLINE struct sock *sock_of_file(struct file *file)
{
	struct inode *inode = READ(file, f_inode);
	struct socket *socket;

	if ((READ(inode, i_mode) & S_IFMT) != S_IFSOCK)
		return NULL;
	socket = READ(file, private_data);
	return socket ? READ(socket, sk) : NULL;
}

/* The TCP, UDP or MPTCP socket behind a descriptor of the current task. */
INLINE struct sock *sock_of_fd(__u32 fd)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct files_struct *files = READ(task, files);
	struct fdtable *table = READ(files, fdt);
	struct file *file = NULL;
	struct sock *sk;

	if (fd >= READ(table, max_fds))
		return NULL;
	bpf_probe_read_kernel(&file, sizeof(file), READ(table, fd) + fd);
	sk = file ? sock_of_file(file) : NULL;
	return sk && is_ours(sk) ? sk : NULL;
}

#endif
