/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Functions of the program iter_sockets, which visits every open file of every process in all namespaces. */
#ifndef SOCKET_ITER_H
#define SOCKET_ITER_H

/*
 * True if the iterator reports this socket. If `port` is not 0, it reports every socket on that port, in any
 * state. If `port` is 0, it reports open sockets: TCP sockets in LISTEN, and UDP sockets that have a port.
 */
INLINE bool is_selected(struct sock *sk, __u32 port)
{
	__u32 sk_port = port_of(sk);

	if (!is_supported(sk))
		return false;
	if (port)
		return sk_port == port;
	return sk_port && (is_udp(sk) || READ(sk, __sk_common.skc_state) == TCP_LISTEN);
}

INLINE void write_holder(struct bpf_iter__task_file *ctx, struct task_struct *task, struct sock *sk,
			 __u64 cookie, __u64 trees)
{
	struct portwatch_record record = {};

	record.kind = PORTWATCH_HOLDER;
	record.time = bpf_ktime_get_ns();
	record.cookie = cookie;
	record.trees = trees;
	capture_socket(&record, sk);
	capture_task(&record, task);
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
}

#endif
