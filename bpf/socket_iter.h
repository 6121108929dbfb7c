/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Parts of iter_sockets, which visits every open file of every process, over all network namespaces. */
#ifndef SOCKET_ITER_H
#define SOCKET_ITER_H

/* True if a pass reports this socket: any socket on `port`, or if that is 0, every one that is open. */
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
