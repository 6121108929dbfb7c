/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * The fentry and fexit hooks of the core engine, used instead of the stable hooks where the kernel allows it.
 * They cost less: reporting failures slows down only the calls that fail. A program's context is an array of
 * the function's arguments. For fexit, the return value follows them.
 */
#ifndef FENTRY_H
#define FENTRY_H

/*
 * Runs once for each change from CLOSE to LISTEN, including that of an MPTCP listener's subflow. If the call
 * failed, the state is no longer LISTEN. The return value is not used, because its index in the context
 * changed in 5.17, when the argument `backlog` was removed.
 */
SEC("fexit/inet_csk_listen_start")
int inet_csk_listen_start_exit(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];

	if (is_tcp(sk) && READ(sk, __sk_common.skc_state) == TCP_LISTEN)
		report(PORTWATCH_OPEN, sk);
	return 0;
}

SEC("fentry/inet_csk_listen_stop")
int inet_csk_listen_stop_entry(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];

	if (is_tcp(sk))
		report(PORTWATCH_CLOSE, sk);
	return 0;
}

/* Runs at the entry of listen(). If the socket is already in LISTEN, the call can only change the backlog. */
INLINE int report_backlog(struct sock *sk, __u32 backlog)
{
	struct portwatch_record *record;

	if (!is_tcp(sk) || READ(sk, __sk_common.skc_state) != TCP_LISTEN)
		return 0;
	record = reserve_for_caller(PORTWATCH_BACKLOG, sk, port_of(sk));
	if (record) {
		record->backlog = backlog;
		bpf_ringbuf_submit(record, 0);
	}
	return 0;
}

INLINE int report_listen_failed(struct sock *sk, int result)
{
	if (result < 0 && is_tcp(sk))
		report_listen_result(sk, result);
	return 0;
}

SEC("fentry/inet_listen")
int inet_listen_entry(__u64 *ctx)
{
	struct socket *socket = (void *)ctx[0];

	return report_backlog(READ(socket, sk), ctx[1]);
}

SEC("fexit/inet_listen")
int inet_listen_exit(__u64 *ctx)
{
	struct socket *socket = (void *)ctx[0];

	return report_listen_failed(READ(socket, sk), ctx[2]);
}

/*
 * From 6.6 on, inet_listen(), inet_bind() and inet6_bind() call inner functions: __inet_listen_sk(),
 * inet_bind_sk() and inet6_bind_sk(). MPTCP calls only the inner functions, for its subflows. All other calls
 * are reported by the programs on the outer functions, so the programs on the inner ones report subflows only.
 */
SEC("fentry/__inet_listen_sk")
int inet_listen_sk_entry(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];

	return is_subflow(sk) ? report_backlog(sk, ctx[1]) : 0;
}

SEC("fexit/__inet_listen_sk")
int inet_listen_sk_exit(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];

	return is_subflow(sk) ? report_listen_failed(sk, ctx[2]) : 0;
}

INLINE int report_kernel_bind_failed(struct sock *sk, const void *sockaddr, __u64 length, int error)
{
	struct sockaddr_any requested = {};

	if (settings.failures && is_supported(sk))
		report_bind_failed(sk, error, read_kernel_sockaddr(&requested, sockaddr, length));
	return 0;
}

/*
 * Runs at the exit of bind(), because another tool's post_bind program may refuse the bind after the port was
 * taken.
 */
INLINE int report_bind_result(struct socket *socket, const void *sockaddr, __u64 length, int result)
{
	struct sock *sk = socket->sk;

	if (!sk)
		return 0;
	if (result < 0)
		return report_kernel_bind_failed(sk, sockaddr, length, result);
	/* A socket without a file was opened by the kernel itself. Only snapshots list such sockets. */
	if (is_udp(sk) && READ(socket, file) && program_chose_port(sk))
		report(PORTWATCH_OPEN, sk);
	return 0;
}

SEC("fexit/inet_bind")
int inet_bind_exit(__u64 *ctx)
{
	return report_bind_result((void *)ctx[0], (void *)ctx[1], ctx[2], ctx[3]);
}

SEC("fexit/inet6_bind")
int inet6_bind_exit(__u64 *ctx)
{
	return report_bind_result((void *)ctx[0], (void *)ctx[1], ctx[2], ctx[3]);
}

INLINE int report_subflow_bind_failed(struct sock *sk, const void *sockaddr, __u64 length, int result)
{
	return result < 0 && is_subflow(sk) ? report_kernel_bind_failed(sk, sockaddr, length, result) : 0;
}

SEC("fexit/inet_bind_sk")
int inet_bind_sk_exit(__u64 *ctx)
{
	return report_subflow_bind_failed((void *)ctx[0], (void *)ctx[1], ctx[2], ctx[3]);
}

SEC("fexit/inet6_bind_sk")
int inet6_bind_sk_exit(__u64 *ctx)
{
	return report_subflow_bind_failed((void *)ctx[0], (void *)ctx[1], ctx[2], ctx[3]);
}

/* Reports ports that the kernel chooses: at a bind() to port 0, at the first packet sent, or at connect(). */
SEC("fexit/udp_lib_get_port")
int udp_lib_get_port_exit(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];

	if ((int)ctx[3] == 0 && (__u16)ctx[1] == 0 && is_udp(sk) && has_file(sk))
		report(PORTWATCH_OPEN, sk);
	return 0;
}

/*
 * Also runs for the socket of every DNS query. To keep this cheap, the first condition must be the one that is
 * false for such a socket.
 */
SEC("fentry/udp_lib_unhash")
int udp_lib_unhash_entry(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];

	if (has_tracked_port(sk, settings.ephemeral) && port_of(sk) && is_udp(sk))
		report(PORTWATCH_CLOSE, sk);
	return 0;
}

/* A connected UDP socket receives from one peer only, so it counts as closed. */
INLINE int report_udp_connected(struct sock *sk, int result)
{
	if (result == 0 && has_tracked_port(sk, settings.ephemeral) && is_udp(sk))
		report(PORTWATCH_CLOSE, sk);
	return 0;
}

SEC("fexit/__ip4_datagram_connect")
int ip4_datagram_connect_exit(__u64 *ctx)
{
	return report_udp_connected((void *)ctx[0], ctx[3]);
}

SEC("fexit/__ip6_datagram_connect")
int ip6_datagram_connect_exit(__u64 *ctx)
{
	return report_udp_connected((void *)ctx[0], ctx[3]);
}

/* A socket that disconnects is open again if it still has a port. It keeps the port if the program chose it. */
SEC("fexit/__udp_disconnect")
int udp_disconnect_exit(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];

	if (has_tracked_port(sk, settings.ephemeral) && port_of(sk) && is_udp(sk))
		report(PORTWATCH_OPEN, sk);
	return 0;
}

#endif
