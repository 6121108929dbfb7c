/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Who holds which socket, over all network namespaces: parts of a pass over the open files. */
#ifndef SOCKET_ITER_H
#define SOCKET_ITER_H

/* All that is open is shown, or, if there is a wanted port, whoever uses that. */
INLINE bool is_selected(struct sock *sk, __u32 wanted)
{
	__u32 port = READ(sk, __sk_common.skc_num);

	if (!is_ours(sk))
		return false;
	if (wanted)
		return port == wanted;
	return port && (is_udp(sk) || READ(sk, __sk_common.skc_state) == TCP_LISTEN);
}

INLINE void show(struct bpf_iter__task_file *ctx, struct task_struct *task, struct sock *sk, __u64 cookie,
		 __u64 trees)
{
	struct portwatch_record record = {};

	record.kind = PORTWATCH_HELD;
	record.time = bpf_ktime_get_ns();
	record.cookie = cookie;
	record.trees = trees;
	capture_socket(&record, sk);
	capture_task(&record, task);
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
}

#endif
