/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Functions that read a socket, find the socket of a file, and copy a sockaddr. */
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

/* False for a raw socket with protocol UDP: its skc_num is not a port but the protocol's number. */
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
	/* The field is missing before 5.6, and in some kernels without CONFIG_MPTCP. */
	return HAS_FIELD(tcp, is_mptcp) && READ_BITS(tcp, is_mptcp);
}

/* Returns the TCP socket that is in LISTEN: for an MPTCP socket its first subflow, otherwise `sk` itself. */
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
 * Returns the port, even of a listener that is closing. If the kernel chose the port, it clears skc_num
 * before the close is seen, but not inet_sport.
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

/* True if this UDP port is reported: ports that the kernel chose are reported only with `ephemeral`. */
INLINE bool has_tracked_port(struct sock *sk, bool ephemeral)
{
	return ephemeral || program_chose_port(sk);
}

/* Returns 0 if the socket has no cookie yet. The kernel creates the cookie at the first request for it. */
INLINE __u64 stored_cookie_of(struct sock *sk)
{
	return READ(sk, __sk_common.skc_cookie.counter);
}

/* False for a socket that the kernel itself opened. Such a socket is never released by a process. */
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
 * For sock:inet_sock_set_state: true if this state change is the end of a listener.
 *
 * The new state must be CLOSE, because a new connection, which is a copy of its listener, also leaves LISTEN,
 * but enters another state. The protocol must be TCP, because an MPTCP socket goes through the same states as
 * its listening subflow, and only the subflow is reported.
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

/* Returns the socket of a descriptor of the current task, or NULL if it is not a supported socket. */
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
 * The length has 64 bits. With 32 bits, clang compares a shifted copy of the length, and the verifier does not
 * learn an upper bound of the length itself.
 */
INLINE __u64 clamp_to_sockaddr(__u64 length)
{
	return length < sizeof(struct sockaddr_any) ? length : sizeof(struct sockaddr_any);
}

/* Copies an address from user memory. Returns `sockaddr`, or NULL if the memory could not be read. */
INLINE const struct sockaddr_any *read_user_sockaddr(struct sockaddr_any *sockaddr, const void *source,
						     __u64 length)
{
	return bpf_probe_read_user(sockaddr, clamp_to_sockaddr(length), source) ? NULL : sockaddr;
}

/* Copies an address from kernel memory. Returns `sockaddr`, or NULL if the memory could not be read. */
INLINE const struct sockaddr_any *read_kernel_sockaddr(struct sockaddr_any *sockaddr, const void *source,
						       __u64 length)
{
	return bpf_probe_read_kernel(sockaddr, clamp_to_sockaddr(length), source) ? NULL : sockaddr;
}

#endif
