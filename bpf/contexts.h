/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* What bcc's programs read of the contexts that they are given, out of reach of bcc's rewriter. */
#ifndef CONTEXTS_H
#define CONTEXTS_H

/* The kernel's own sockets have no file, and need not be released by user space. */
INLINE bool has_file(struct sock *sk)
{
	struct socket *socket = READ(sk, sk_socket);

	return socket && READ(socket, file);
}

/* Of a UDP socket that is released: the table drops the close of what was never open. */
INLINE bool is_tracked_udp(struct sock *sk)
{
	return EPHEMERAL || READ_BITS(sk, sk_userlocks) & SOCK_BINDPORT_LOCK;
}

/* The helper that makes cookies cannot be called here; a snapshot, or a helper elsewhere, makes them. */
INLINE void capture_identity(struct portwatch_record *record, struct sock *sk)
{
	record->cookie = READ(sk, __sk_common.skc_cookie.counter);
	record->sock = (__u64)sk;
}

INLINE struct sock *listening_sock(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *bpf_sk;

	if (ctx->op != BPF_SOCK_OPS_TCP_LISTEN_CB)
		return NULL;
	bpf_sk = ctx->sk;
	return bpf_sk ? (void *)bpf_skc_to_tcp_sock(bpf_sk) : NULL;
}

/* As core.bpf.c has it: to CLOSE, and TCP. */
INLINE struct sock *sock_that_stops(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sk = (void *)ctx->args[0];

	return (int)ctx->args[1] == TCP_LISTEN && (int)ctx->args[2] == TCP_CLOSE && is_tcp(sk) ? sk : NULL;
}

INLINE bool is_udp_bind(struct bpf_sock_addr *ctx)
{
	return ctx->protocol == IPPROTO_UDP;
}

INLINE bool asks_kernel_to_choose(struct bpf_sock_addr *ctx)
{
	return ctx->user_port == 0;
}

INLINE struct sock *udp_sock(struct bpf_sock *ctx)
{
	return ctx->protocol == IPPROTO_UDP ? (void *)ctx : NULL;
}

#define raw_argument(ctx, number) ((void *)(ctx)->args[number])
#define syscall_argument(ctx, number) ((ctx)->args[number])
#define syscall_result(ctx) ((ctx)->ret)

INLINE struct sock *sock_of_socket(struct socket *socket)
{
	return READ(socket, sk);
}

/* The socket that a call failed on, if it is one to tell of. */
INLINE struct sock *our_sock_of(struct socket *socket)
{
	struct sock *sk = sock_of_socket(socket);

	return sk && is_ours(sk) ? sk : NULL;
}

INLINE bool read_asked(struct sockaddr_any *asked, const void *user_address, __u64 length)
{
	return !bpf_probe_read_user(asked, bounded(length), user_address);
}

INLINE bool read_asked_in_kernel(struct sockaddr_any *asked, const void *address, __u64 length)
{
	return !bpf_probe_read_kernel(asked, bounded(length), address);
}

#ifdef HAS_ITERATOR

/* The socket whose close will be told of, if anything will when this one closes. */
INLINE struct sock *sock_that_is_told_of(struct sock *sk)
{
	if (is_udp(sk))
		return is_tracked_udp(sk) ? sk : NULL;
	return READ(sk, __sk_common.skc_state) == TCP_LISTEN ? sock_that_listens(sk) : NULL;
}

INLINE struct task_struct *held_by(struct bpf_iter__task_file *ctx)
{
	return ctx->task;
}

/* The socket of this step of the pass, if it is shown. */
INLINE struct sock *held_sock(struct bpf_iter__task_file *ctx, __u32 wanted)
{
	struct file *file = ctx->file;
	struct socket *socket;
	struct sock *sk;

	if (!file)
		return NULL;
	socket = bpf_sock_from_file(file);
	sk = socket ? socket->sk : NULL;
	return sk && is_selected(sk, wanted) ? sk : NULL;
}

INLINE void show_held(struct bpf_iter__task_file *ctx, struct task_struct *task, struct sock *sk, __u64 trees)
{
	show(ctx, task, sk, bpf_get_socket_cookie(sk), trees);
}

#endif

#endif
