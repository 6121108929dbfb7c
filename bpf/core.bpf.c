// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * The programs for libbpf: here on hooks that need neither kprobes nor fentry,
 * in fentry.h on those. Which hook is exact about what is told in docs/hooks.md.
 */
#define CORE
#include "libbpf.h"
#include "kernel.h"
#include "portwatch.h"
#include "read.h"
#include "capture.h"
#include "socket_iter.h"
#include "tree.h"
#include "filter.h"

/* Filled in before the load. One variable, since the compiler orders several as it likes. */
const volatile struct {
	bool ephemeral;		/* UDP ports that the kernel chose, too */
	bool failures;		/* binds and listens that fail, too */
	bool socket_helpers;	/* tracing programs may call the helpers for sockets: from 5.12 on */
} settings = {};

/* Memory shared with the reader. */
struct {
	__u64 lost;	/* records for which the ring had no room */
	__u64 missed;	/* processes of trees for which the map of members had none */
	__u64 port;	/* the next pass shows not what is open, but whoever uses this port */
	__u64 trees;	/* that are watched, a bit for each */
	__u64 filter_flags;	/* what is not told: of enum filter_flag */
	struct filter filter;
} shared = {};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} records SEC(".maps");

/* A call under way in a thread, from its entry to its exit. */
struct call {
	__u64 address;	/* of the sockaddr, in user space */
	__u32 fd;
	__u32 length;	/* of the sockaddr */
	__u32 opened;	/* the listen was reported by listen_opened */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct call);
} calls SEC(".maps");

/*
 * Marks the UDP sockets that we reported, so that the release of every other
 * socket costs one look at its protocol, and whatever a watched tree had. A
 * storage in the socket has no size limit, goes when the socket goes, and costs
 * half of a cookie and a hash.
 */
struct mark {
	__u8 kernel_chose;
	__u8 reported;
	__u8 of_tree;
	__u32 excluded_in_generation;	/* of the wanted cgroups, in which generation of these */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct mark);
} marks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct member);
} members SEC(".maps");

/* Those that listen for MPTCP sockets of trees, by address: no helper leads from one to the other. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, __u8);
} subflows SEC(".maps");

INLINE __u64 trees_of(struct task_struct *task)
{
	struct member *member;
	__u32 pid;

	if (!shared.trees)
		return 0;
	pid = pid_of(task);
	member = bpf_map_lookup_elem(&members, &pid);
	return member && member->start == start_of(task) ? member->trees & shared.trees : 0;
}

INLINE __u64 trees_of_current(void)
{
	return trees_of((void *)bpf_get_current_task());
}

/* `sk` is here, and below, a pointer that helpers take. */
INLINE void mark_of_tree(void *sk)
{
	struct mark *mark = bpf_sk_storage_get(&marks, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);

	if (mark)
		mark->of_tree = 1;
}

INLINE bool is_of_tree(void *sk)
{
	struct mark *mark = bpf_sk_storage_get(&marks, sk, NULL, 0);

	return mark && mark->of_tree;
}

INLINE bool passes_filter(struct sock *sk, __u16 port)
{
	return !shared.filter_flags || filter_passes(&shared.filter, shared.filter_flags, sk, port);
}

/* Whether what a process of these trees does to a socket is told, wherever that is. */
INLINE bool must_report(void *sk, __u64 trees)
{
	return trees || !(shared.filter_flags & FILTER_TREES) || is_of_tree(sk);
}

INLINE bool is_current_excluded(void)
{
	return shared.filter_flags & FILTER_CGROUPS && is_in_excluded_cgroup(&shared.filter, (void *)bpf_get_current_task());
}

/* Of an open: its close, whoever does it, will not be told either. */
INLINE bool is_open_excluded(void *sk)
{
	struct mark *mark;
	bool outside;

	if (!(shared.filter_flags & FILTER_CGROUPS))
		return false;
	outside = is_current_excluded();
	mark = bpf_sk_storage_get(&marks, sk, NULL, outside ? BPF_SK_STORAGE_GET_F_CREATE : 0);
	if (mark)
		mark->excluded_in_generation = outside ? shared.filter.generation : 0;
	return outside;
}

/* Not in an earlier generation, since what was not wanted then can be now. */
INLINE bool is_close_excluded(void *sk)
{
	struct mark *mark;

	if (!(shared.filter_flags & FILTER_CGROUPS))
		return false;
	mark = bpf_sk_storage_get(&marks, sk, NULL, 0);
	return mark && mark->excluded_in_generation == shared.filter.generation;
}

INLINE struct portwatch_record *reserve(enum portwatch_kind kind, struct sock *sk, __u64 trees)
{
	struct portwatch_record *record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);

	if (!record) {
		__sync_fetch_and_add(&shared.lost, 1);
		return NULL;
	}
	capture(record, kind, sk);
	record->trees = trees;
	return record;
}

/* For what is told only if a watched tree does it itself; `sk` may be any pointer. */
INLINE struct portwatch_record *reserve_for_actor(enum portwatch_kind kind, struct sock *sk, __u16 port)
{
	__u64 trees = trees_of_current();

	if (!passes_filter(sk, port) || (!trees && shared.filter_flags & FILTER_TREES) || is_current_excluded())
		return NULL;
	return reserve(kind, sk, trees);
}

/* `asked` is the address, if it could be read. */
INLINE void report_bind_failed(struct sock *sk, int result, const struct sockaddr_any *asked)
{
	struct portwatch_record *record;

	record = reserve_for_actor(PORTWATCH_BIND_FAILED, sk, asked ? __builtin_bswap16(asked->port) : port_of(sk));
	if (record) {
		record->error = result;
		if (asked)
			capture_requested(record, sk, asked);
		bpf_ringbuf_submit(record, 0);
	}
}

/* Without the helper, 0 for a socket that nobody ever asked for its cookie: then the inode tells. */
INLINE __u64 cookie_of(struct sock *sk)
{
	return settings.socket_helpers ? bpf_get_socket_cookie(sk) : READ(sk, __sk_common.skc_cookie.counter);
}

/* Of a socket that a pass over files shows: MPTCP's own never closes, its subflow does. */
INLINE void mark_held_by_tree(struct sock *sk)
{
	__u64 subflow;
	__u8 yes = 1;

	if (protocol_of(sk) != IPPROTO_MPTCP) {
		mark_of_tree(sk);
	} else if (READ(sk, __sk_common.skc_state) == TCP_LISTEN) {
		subflow = (__u64)sock_that_listens(sk);
		if (bpf_map_update_elem(&subflows, &subflow, &yes, 0))
			__sync_fetch_and_add(&shared.lost, 1);
	}
}

/* Whether it was found to be a tree's, when it closes and its address becomes another's. */
INLINE bool was_subflow_of_tree(struct sock *sk)
{
	__u64 address = (__u64)sk;

	return is_subflow(sk) && !bpf_map_delete_elem(&subflows, &address);
}

/*
 * A tracing program does not run where it runs already: preempted, it would have others pass the same hook
 * unseen on this CPU.
 */
INLINE void disable_preemption(void)
{
	if (bpf_preempt_disable)
		bpf_preempt_disable();
}

INLINE void enable_preemption(void)
{
	if (bpf_preempt_enable)
		bpf_preempt_enable();
}

INLINE void report_unpreempted(enum portwatch_kind kind, struct sock *sk)
{
	bool of_tree = kind == PORTWATCH_CLOSE && was_subflow_of_tree(sk);
	struct portwatch_record *record;
	__u64 trees;

	if (!passes_filter(sk, last_port_of(sk)))
		return;
	trees = trees_of_current();
	if (settings.socket_helpers) {
		if (!of_tree && !must_report(sk, trees))
			return;
		if (trees)
			mark_of_tree(sk);
		if (kind == PORTWATCH_OPEN ? is_open_excluded(sk) : is_close_excluded(sk))
			return;
	}
	record = reserve(kind, sk, trees);
	if (record) {
		record->cookie = cookie_of(sk);
		bpf_ringbuf_submit(record, 0);
	}
}

/* From a tracing program. */
INLINE void report(enum portwatch_kind kind, struct sock *sk)
{
	disable_preemption();
	report_unpreempted(kind, sk);
	enable_preemption();
}

/* Not bpf_get_current_pid_tgid: sockops programs may not call it before 6.12. */
INLINE __u64 this_thread(void)
{
	return bpf_get_current_task();
}

/* Successful listens only, once for each CLOSE to LISTEN, when the port is known. */
SEC("sockops")
int listen_opened(struct bpf_sock_ops *ctx)
{
	struct portwatch_record *record;
	struct call *call;
	struct bpf_sock *bpf_sk;
	struct sock *sk;
	__u64 thread, trees;

	if (ctx->op != BPF_SOCK_OPS_TCP_LISTEN_CB)
		return 1;
	bpf_sk = ctx->sk;
	if (!bpf_sk)
		return 1;
	sk = bpf_skc_to_tcp_sock(bpf_sk);
	if (!sk)
		return 1;
	trees = trees_of_current();
	if (trees)
		mark_of_tree(bpf_sk);
	record = NULL;
	if (passes_filter(sk, port_of(sk)) && must_report(bpf_sk, trees) && !is_open_excluded(bpf_sk))
		record = reserve(PORTWATCH_OPEN, sk, trees);
	if (record) {
		record->cookie = bpf_get_socket_cookie(ctx);
		bpf_ringbuf_submit(record, 0);
	}
	thread = this_thread();
	call = bpf_map_lookup_elem(&calls, &thread);
	if (call)
		call->opened = 1;
	return 1;
}

/*
 * Fires before the port is taken, so a listen that fails shows as an open and a
 * close: opens are taken from listen_opened, and the table drops the close of a
 * socket that was never open. No map of open sockets here, so none can be full.
 */
SEC("tp_btf/inet_sock_set_state")
int listen_closed(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];

	/*
	 * To CLOSE, since the copy of a listener that a connection begins as leaves LISTEN, too.
	 * TCP, since MPTCP's own socket goes through the same states as the subflow that listens.
	 */
	if ((int)ctx[1] == TCP_LISTEN && (int)ctx[2] == TCP_CLOSE && is_tcp(sk))
		report(PORTWATCH_CLOSE, sk);
	return 0;
}

/* Whether a UDP socket that was bound is one to be told of. */
INLINE bool is_tracked_udp(struct sock *sk)
{
	return settings.ephemeral || READ_BITS(sk, sk_userlocks) & SOCK_BINDPORT_LOCK;
}

/* The bound port no longer tells who chose it: sk_userlocks is set after post_bind. */
INLINE int mark_port_choice(struct bpf_sock_addr *ctx)
{
	struct mark *mark;

	if (ctx->protocol != IPPROTO_UDP)
		return 1;
	mark = bpf_sk_storage_get(&marks, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (mark)
		mark->kernel_chose = ctx->user_port == 0;
	return 1;
}

SEC("cgroup/bind4")
int bind4_asked(struct bpf_sock_addr *ctx)
{
	return mark_port_choice(ctx);
}

SEC("cgroup/bind6")
int bind6_asked(struct bpf_sock_addr *ctx)
{
	return mark_port_choice(ctx);
}

INLINE int udp_bound(struct bpf_sock *ctx)
{
	struct sock *sk = (void *)ctx;
	struct portwatch_record *record;
	struct socket *socket;
	struct mark *mark;
	__u64 trees;

	if (ctx->protocol != IPPROTO_UDP)
		return 1;
	mark = bpf_sk_storage_get(&marks, ctx, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (mark && mark->kernel_chose && !settings.ephemeral)
		return 1;
	/* The kernel's own sockets have no file and are never released by user space. */
	socket = READ(sk, sk_socket);
	if (!socket || !READ(socket, file))
		return 1;
	trees = trees_of_current();
	if (trees)
		mark_of_tree(ctx);
	if (mark)
		mark->reported = 1;
	if (!passes_filter(sk, port_of(sk)) || !must_report(ctx, trees) || is_open_excluded(ctx))
		return 1;
	record = reserve(PORTWATCH_OPEN, sk, trees);
	if (record) {
		record->cookie = bpf_get_socket_cookie(ctx);
		if (mark && !mark->kernel_chose)
			record->flags |= PORTWATCH_PORT_CHOSEN;
		bpf_ringbuf_submit(record, 0);
	}
	return 1;
}

SEC("cgroup/post_bind4")
int udp_bound4(struct bpf_sock *ctx)
{
	return udp_bound(ctx);
}

SEC("cgroup/post_bind6")
int udp_bound6(struct bpf_sock *ctx)
{
	return udp_bound(ctx);
}

INLINE bool was_reported(struct bpf_sock *ctx)
{
	struct mark *mark = bpf_sk_storage_get(&marks, ctx, NULL, 0);

	if (mark && mark->reported)
		return true;
	/* The snapshot could not mark it: the table knows whether it was open. */
	return !settings.socket_helpers && is_tracked_udp((void *)ctx);
}

SEC("cgroup/sock_release")
int udp_released(struct bpf_sock *ctx)
{
	struct sock *sk = (void *)ctx;
	struct portwatch_record *record;

	if (ctx->protocol != IPPROTO_UDP || !was_reported(ctx))
		return 1;
	if (!passes_filter(sk, port_of(sk)) || !must_report(ctx, 0) || is_close_excluded(ctx))
		return 1;
	record = reserve(PORTWATCH_CLOSE, sk, trees_of_current());
	if (record) {
		record->cookie = bpf_get_socket_cookie(ctx);
		bpf_ringbuf_submit(record, 0);
	}
	return 1;
}

/*
 * The address is read at the exit: at the entry its page may never have been
 * touched, and reading it would fault. A thread that changes it meanwhile
 * fools us as it would fool strace.
 */
SEC("tp/syscalls/sys_enter_bind")
int bind_entered(struct syscall_enter *ctx)
{
	__u64 thread = this_thread();
	struct call call = { .address = ctx->args[1], .fd = ctx->args[0], .length = ctx->args[2] };

	bpf_map_update_elem(&calls, &thread, &call, 0);
	return 0;
}

SEC("tp/syscalls/sys_exit_bind")
int bind_exited(struct syscall_exit *ctx)
{
	__u64 thread = this_thread();
	struct call *call = bpf_map_lookup_elem(&calls, &thread);
	struct sockaddr_any asked = {};
	struct sock *sk;
	bool is_read;

	if (!call)
		return 0;
	sk = ctx->ret < 0 ? sock_of_fd(call->fd) : NULL;
	if (sk) {
		is_read = !bpf_probe_read_user(&asked, bounded(call->length), (void *)call->address);
		report_bind_failed(sk, ctx->ret, is_read ? &asked : NULL);
	}
	bpf_map_delete_elem(&calls, &thread);
	return 0;
}

SEC("tp/syscalls/sys_enter_listen")
int listen_entered(struct syscall_enter *ctx)
{
	__u64 thread = this_thread();
	struct call call = { .fd = ctx->args[0] };

	bpf_map_update_elem(&calls, &thread, &call, 0);
	return 0;
}

/* A listen that succeeded without listen_opened found a listener, and changed its backlog. */
SEC("tp/syscalls/sys_exit_listen")
int listen_exited(struct syscall_exit *ctx)
{
	__u64 thread = this_thread();
	struct call *call = bpf_map_lookup_elem(&calls, &thread);
	struct portwatch_record *record;
	struct sock *sk;

	if (!call)
		return 0;
	sk = call->opened ? NULL : sock_of_fd(call->fd);
	if (sk && !is_udp(sk)) {
		record = reserve_for_actor(ctx->ret < 0 ? PORTWATCH_LISTEN_FAILED : PORTWATCH_BACKLOG, sk, port_of(sk));
		if (record) {
			record->error = ctx->ret;
			bpf_ringbuf_submit(record, 0);
		}
	}
	bpf_map_delete_elem(&calls, &thread);
	return 0;
}

/* Without the helper it is no pointer that other helpers take: then nothing can be marked. */
INLINE struct sock *held_sock(struct file *file)
{
	struct socket *socket;

	if (!settings.socket_helpers)
		return sock_of_file(file);
	socket = bpf_sock_from_file(file);
	return socket ? socket->sk : NULL;
}

SEC("iter/task_file")
int iter_sockets(struct bpf_iter__task_file *ctx)
{
	/* Loaded once: to the verifier each load may be NULL anew. */
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct sock *sk;
	struct mark *mark;
	__u64 trees;

	if (!file || !task)
		return 0;
	sk = held_sock(file);
	if (!sk || !is_selected(sk, shared.port))
		return 0;
	trees = trees_of(task);
	if (trees && settings.socket_helpers)
		mark_held_by_tree(sk);
	/* What was bound before we came, too, is to be told of when it is released. */
	if (!shared.port && settings.socket_helpers && is_udp(sk)) {
		mark = bpf_sk_storage_get(&marks, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
		if (mark)
			mark->reported = 1;
	}
	/* Opened outside, and passed on to somebody wanted, its close is. */
	if (settings.socket_helpers && shared.filter_flags & FILTER_CGROUPS && !is_in_excluded_cgroup(&shared.filter, task)) {
		mark = bpf_sk_storage_get(&marks, sk, NULL, 0);
		if (mark)
			mark->excluded_in_generation = 0;
	}
	show(ctx, task, sk, cookie_of(sk), trees);
	return 0;
}

INLINE void add_child(struct task_struct *parent, struct task_struct *child)
{
	struct member member = { .trees = trees_of(parent) };
	__u32 pid;

	if (!member.trees || is_thread(child))
		return;
	member.start = start_of(child);
	pid = pid_of(child);
	if (bpf_map_update_elem(&members, &pid, &member, 0))
		__sync_fetch_and_add(&shared.missed, 1);
}

/* Before the child runs: it belongs to what its parent belongs to, whatever becomes of that. */
SEC("tp_btf/sched_process_fork")
int process_forked(__u64 *ctx)
{
	disable_preemption();
	add_child((void *)ctx[0], (void *)ctx[1]);
	enable_preemption();
	return 0;
}

INLINE void remove_process(struct task_struct *task)
{
	__u32 pid;

	if (!shared.trees || !is_last_thread(task))
		return;
	pid = pid_of(task);
	if (trees_of(task))
		bpf_map_delete_elem(&members, &pid);
}

/* What it leaves open is closed later, and is of its trees by the mark in the socket. */
SEC("tp_btf/sched_process_exit")
int process_exited(__u64 *ctx)
{
	disable_preemption();
	remove_process((void *)ctx[0]);
	enable_preemption();
	return 0;
}

#include "fentry.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";
