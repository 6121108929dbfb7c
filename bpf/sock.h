/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* What the programs read from a struct sock, from the socket and file above it, and from a sockaddr. */
#ifndef SOCK_H
#define SOCK_H

INLINE __u32 protocol_of(struct sock *sk)
{
	return READ_BITS(sk, sk_protocol);
}

INLINE bool is_tcp(struct sock *sk)
{
	return protocol_of(sk) == IPPROTO_TCP;
}

/* A raw socket for UDP has the same protocol, and the protocol's number in place of a port. */
INLINE bool is_udp(struct sock *sk)
{
	return protocol_of(sk) == IPPROTO_UDP && READ_BITS(sk, sk_type) != SOCK_RAW;
}

/* True for the kinds of socket that portwatch reports: TCP, UDP and MPTCP over IPv4 or IPv6. */
INLINE bool is_supported(struct sock *sk)
{
	__u32 family = READ(sk, __sk_common.skc_family), protocol = protocol_of(sk);

	return (family == AF_INET || family == AF_INET6) &&
	       (protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_MPTCP) &&
	       READ_BITS(sk, sk_type) != SOCK_RAW;
}

/* True for a TCP socket that belongs to an MPTCP socket. */
INLINE bool is_subflow(struct sock *sk)
{
	struct tcp_sock *tcp = (void *)sk;

	if (!is_tcp(sk))
		return false;
	/* The field came with 5.6. Some kernels without CONFIG_MPTCP do not have it either. */
	return HAS_FIELD(tcp, is_mptcp) && READ_BITS(tcp, is_mptcp);
}

/* The TCP socket that listens on behalf of a listener: of an MPTCP socket, its first subflow. */
INLINE struct sock *listening_sock(struct sock *sk)
{
	struct mptcp_sock *mptcp = (void *)sk;

	if (protocol_of(sk) == IPPROTO_MPTCP && HAS_FIELD(mptcp, first))
		return (void *)READ_BITS(mptcp, first);
	return sk;
}

INLINE __u32 backlog_of(struct sock *sk)
{
	struct sock *listener = listening_sock(sk);

	return READ(listener, sk_max_ack_backlog);
}

INLINE __u32 netns_of(struct sock *sk)
{
	struct net *net = READ(sk, __sk_common.skc_net.net);

	return READ(net, ns.inum);
}

INLINE __u16 port_of(struct sock *sk)
{
	return READ(sk, __sk_common.skc_num);
}

/*
 * The port, also of a listener that is closing. The kernel has cleared skc_num by then if it chose
 * the port itself, but not inet_sport.
 */
INLINE __u16 last_port_of(struct sock *sk)
{
	struct inet_sock *inet = (void *)sk;
	__u16 port = port_of(sk);

	return port ? port : __builtin_bswap16(READ(inet, inet_sport));
}

/* False if the kernel chose the port. */
INLINE bool program_chose_port(struct sock *sk)
{
	return READ_BITS(sk, sk_userlocks) & SOCK_BINDPORT_LOCK;
}

/* True for a bound UDP socket whose opens and closes are reported. */
INLINE bool has_tracked_port(struct sock *sk, bool ephemeral)
{
	return ephemeral || program_chose_port(sk);
}

/* 0 if nothing has requested this socket's cookie yet. */
INLINE __u64 stored_cookie_of(struct sock *sk)
{
	return READ(sk, __sk_common.skc_cookie.counter);
}

/* False for sockets of the kernel itself, which user space never releases. */
INLINE bool has_file(struct sock *sk)
{
	struct socket *socket = READ(sk, sk_socket);

	return socket && READ(socket, file);
}

INLINE __u64 inode_of(struct socket *socket)
{
	struct socket_alloc *alloc = (void *)socket;

	return socket ? READ(alloc, vfs_inode.i_ino) : 0;
}

/*
 * True if this state change, seen at sock:inet_sock_set_state, is the end of a listener.
 *
 * To CLOSE, because a new connection is a copy of its listener and leaves LISTEN too.
 * TCP, because an MPTCP socket goes through the same states as its listening subflow.
 */
INLINE bool is_listener_close(struct sock *sk, int old_state, int new_state)
{
	return old_state == TCP_LISTEN && new_state == TCP_CLOSE && is_tcp(sk);
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

/* The socket behind a file descriptor of the current task, or NULL if there is no supported one. */
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
	return sk && is_supported(sk) ? sk : NULL;
}

/*
 * Takes 64 bits: with 32, clang compares a shifted copy of the length, and the verifier
 * learns no bound for the length itself.
 */
INLINE __u64 clamp_to_sockaddr(__u64 length)
{
	return length < sizeof(struct sockaddr_any) ? length : sizeof(struct sockaddr_any);
}

/* Returns `sockaddr`, filled from user memory, or NULL if that could not be read. */
INLINE const struct sockaddr_any *read_user_sockaddr(struct sockaddr_any *sockaddr, const void *source,
						     __u64 length)
{
	return bpf_probe_read_user(sockaddr, clamp_to_sockaddr(length), source) ? NULL : sockaddr;
}

/* The same from kernel memory. */
INLINE const struct sockaddr_any *read_kernel_sockaddr(struct sockaddr_any *sockaddr, const void *source,
						       __u64 length)
{
	return bpf_probe_read_kernel(sockaddr, clamp_to_sockaddr(length), source) ? NULL : sockaddr;
}

#endif
