/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Functions that read the contexts of the programs in bcc.bpf.c. They are in a header because bcc rewrites
 * reads of a context in bcc.bpf.c, but not in headers.
 */
#ifndef CONTEXTS_H
#define CONTEXTS_H

#define raw_argument(ctx, number) ((void *)(ctx)->args[number])
#define syscall_argument(ctx, number) ((ctx)->args[number])
#define syscall_result(ctx) ((ctx)->ret)

/* Returns the socket of a successful listen(), or NULL if the sockops event is not a listen(). */
INLINE struct sock *sock_of_listen_cb(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *bpf_sk;

	if (ctx->op != BPF_SOCK_OPS_TCP_LISTEN_CB)
		return NULL;
	bpf_sk = ctx->sk;
	return bpf_sk ? (void *)bpf_skc_to_tcp_sock(bpf_sk) : NULL;
}

/* For inet_sock_set_state: returns the listener that closes, or NULL if no listener closes. */
INLINE struct sock *closing_listener(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sk = (void *)ctx->args[0];

	return is_listener_close(sk, ctx->args[1], ctx->args[2]) ? sk : NULL;
}

INLINE bool is_udp_bind(struct bpf_sock_addr *ctx)
{
	return ctx->protocol == IPPROTO_UDP;
}

/* A bind() to port 0 lets the kernel choose the port. */
INLINE bool lets_kernel_choose_port(struct bpf_sock_addr *ctx)
{
	return ctx->user_port == 0;
}

INLINE struct sock *udp_sock_of(struct bpf_sock *ctx)
{
	return ctx->protocol == IPPROTO_UDP ? (void *)ctx : NULL;
}

INLINE struct sock *sock_of_socket(struct socket *socket)
{
	return READ(socket, sk);
}

#ifdef HAS_ITERATOR

INLINE struct task_struct *task_of_iter(struct bpf_iter__task_file *ctx)
{
	return ctx->task;
}

/* Returns the socket of the iterator's current file, or NULL if the file is not a socket to report. */
INLINE struct sock *sock_of_iter(struct bpf_iter__task_file *ctx, __u32 port)
{
	struct file *file = ctx->file;
	struct socket *socket;
	struct sock *sk;

	if (!file)
		return NULL;
	socket = bpf_sock_from_file(file);
	sk = socket ? socket->sk : NULL;
	return sk && is_selected(sk, port) ? sk : NULL;
}

/* Returns the socket whose close will be reported when `sk` closes, or NULL if no close will be reported. */
INLINE struct sock *sock_reported_on_close(struct sock *sk)
{
	if (is_udp(sk))
		return has_tracked_port(sk, EPHEMERAL) ? sk : NULL;
	return READ(sk, __sk_common.skc_state) == TCP_LISTEN ? listening_sock(sk) : NULL;
}

#endif

#endif
