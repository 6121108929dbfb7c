/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * The same on fentry and fexit: cheaper, and failures cost nothing but those who
 * fail. The context of fexit holds the arguments, then the result.
 */
#ifndef FENTRY_H
#define FENTRY_H

/*
 * Runs once for each CLOSE to LISTEN, MPTCP's subflow too. Not its result is looked
 * at, which is elsewhere since its argument `backlog` was dropped in 5.17: where it
 * fails, it leaves the state LISTEN again.
 */
SEC("fexit/inet_csk_listen_start")
int listen_started(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];

	if (is_tcp(sk) && READ(sk, __sk_common.skc_state) == TCP_LISTEN)
		report(PORTWATCH_OPEN, sk);
	return 0;
}

SEC("fentry/inet_csk_listen_stop")
int listen_stopped(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];

	if (is_tcp(sk))
		report(PORTWATCH_CLOSE, sk);
	return 0;
}

/* At the entry a socket that listens already can only be given another backlog. */
INLINE int listen_asked(struct sock *sk, __u32 backlog)
{
	struct portwatch_record *record;

	if (!is_tcp(sk) || READ(sk, __sk_common.skc_state) != TCP_LISTEN)
		return 0;
	record = reserve_for_actor(PORTWATCH_BACKLOG, sk, port_of(sk));
	if (record) {
		record->backlog = backlog;
		bpf_ringbuf_submit(record, 0);
	}
	return 0;
}

INLINE int listen_answered(struct sock *sk, int result)
{
	struct portwatch_record *record;

	if (result >= 0 || !is_tcp(sk))
		return 0;
	record = reserve_for_actor(PORTWATCH_LISTEN_FAILED, sk, port_of(sk));
	if (record) {
		record->error = result;
		bpf_ringbuf_submit(record, 0);
	}
	return 0;
}

SEC("fentry/inet_listen")
int listen_called(__u64 *ctx)
{
	struct socket *socket = (void *)ctx[0];

	return listen_asked(READ(socket, sk), ctx[1]);
}

SEC("fexit/inet_listen")
int listen_returned(__u64 *ctx)
{
	struct socket *socket = (void *)ctx[0];

	return listen_answered(READ(socket, sk), ctx[2]);
}

/*
 * From 6.6 on MPTCP goes to the inner functions, past those that take a socket; all
 * others go through both, unless the compiler made them one, and were told of above.
 */
SEC("fentry/__inet_listen_sk")
int subflow_listen_called(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];

	return is_subflow(sk) ? listen_asked(sk, ctx[1]) : 0;
}

SEC("fexit/__inet_listen_sk")
int subflow_listen_returned(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];

	return is_subflow(sk) ? listen_answered(sk, ctx[2]) : 0;
}

INLINE int bind_failed(struct sock *sk, const void *address, __u64 length, int result)
{
	struct sockaddr_any asked = {};
	bool is_read;

	if (!settings.failures || !is_ours(sk))
		return 0;
	is_read = !bpf_probe_read_kernel(&asked, bounded(length), address);
	report_bind_failed(sk, result, is_read ? &asked : NULL);
	return 0;
}

/* After everybody who may refuse it: a cgroup's post_bind does so when the port is taken already. */
INLINE int bind_answered(struct socket *socket, const void *address, __u64 length, int result)
{
	struct sock *sk = socket->sk;

	if (!sk)
		return 0;
	if (result < 0)
		return bind_failed(sk, address, length, result);
	/* The kernel's own sockets have no file, and no owner: the snapshot shows them. */
	if (is_udp(sk) && READ(socket, file) &&
	    READ_BITS(sk, sk_userlocks) & SOCK_BINDPORT_LOCK)
		report(PORTWATCH_OPEN, sk);
	return 0;
}

SEC("fexit/inet_bind")
int bind4_returned(__u64 *ctx)
{
	return bind_answered((void *)ctx[0], (void *)ctx[1], ctx[2], ctx[3]);
}

SEC("fexit/inet6_bind")
int bind6_returned(__u64 *ctx)
{
	return bind_answered((void *)ctx[0], (void *)ctx[1], ctx[2], ctx[3]);
}

INLINE int subflow_bind_answered(struct sock *sk, const void *address, __u64 length, int result)
{
	return result < 0 && is_subflow(sk) ? bind_failed(sk, address, length, result) : 0;
}

SEC("fexit/inet_bind_sk")
int subflow_bind4_returned(__u64 *ctx)
{
	return subflow_bind_answered((void *)ctx[0], (void *)ctx[1], ctx[2], ctx[3]);
}

SEC("fexit/inet6_bind_sk")
int subflow_bind6_returned(__u64 *ctx)
{
	return subflow_bind_answered((void *)ctx[0], (void *)ctx[1], ctx[2], ctx[3]);
}

/* Ports that the kernel chose: by bind() to port 0, or at the first packet or connect(). */
SEC("fexit/udp_lib_get_port")
int udp_port_chosen(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	struct socket *socket = READ(sk, sk_socket);

	if ((int)ctx[3] == 0 && (__u16)ctx[1] == 0 && is_udp(sk) && socket &&
	    READ(socket, file))
		report(PORTWATCH_OPEN, sk);
	return 0;
}

/* Runs for every DNS query, too: one look at the socket must be enough to let it pass. */
SEC("fentry/udp_lib_unhash")
int udp_unhashed(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];

	if (is_tracked_udp(sk) && READ(sk, __sk_common.skc_num) && is_udp(sk))
		report(PORTWATCH_CLOSE, sk);
	return 0;
}

/* A UDP socket that is connected hears from one peer only. */
INLINE int udp_connect_answered(struct sock *sk, int result)
{
	if (result == 0 && is_tracked_udp(sk) && is_udp(sk))
		report(PORTWATCH_CLOSE, sk);
	return 0;
}

SEC("fexit/__ip4_datagram_connect")
int udp_connected4(__u64 *ctx)
{
	return udp_connect_answered((void *)ctx[0], ctx[3]);
}

SEC("fexit/__ip6_datagram_connect")
int udp_connected6(__u64 *ctx)
{
	return udp_connect_answered((void *)ctx[0], ctx[3]);
}

/* It keeps its port if the program chose it. */
SEC("fexit/__udp_disconnect")
int udp_disconnected(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];

	if (is_tracked_udp(sk) && READ(sk, __sk_common.skc_num) && is_udp(sk))
		report(PORTWATCH_OPEN, sk);
	return 0;
}

#endif
