// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * The programs of the core engine, loaded by libbpf. This file has the stable hooks, which need neither
 * kprobes nor fentry. fentry.h has the fentry and fexit hooks. A program is named after its hook.
 * docs/kernel-hooks.md says what each hook sees, and why it was chosen.
 */
#define CORE
#include "libbpf.h"
#include "kernel.h"
#include "portwatch.h"
#include "read.h"
#include "sock.h"
#include "task.h"
#include "capture.h"
#include "socket_iter.h"
#include "filter.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/*
 * Written by user space before the programs are loaded. User space relies on the order of the fields. The
 * compiler may reorder separate variables, but not the fields of a struct.
 */
const volatile struct {
	bool ephemeral;		/* also report UDP ports that the kernel chose */
	bool failures;		/* report binds and listens that fail */
	bool socket_helpers;	/* tracing programs may call helpers that take a socket; true from 5.12 on */
} settings = {};

/* User space maps this memory. The programs write only the two counters, user space writes the rest. */
struct {
	__u64 dropped_records;	/* records that did not fit into the ring buffer */
	__u64 dropped_members;	/* processes that did not fit into `members` */
	__u64 port;		/* if not 0, iter_sockets reports only sockets on this port */
	__u64 trees;		/* bit mask of the watched process trees */
	__u64 filter_flags;	/* enum filter_flag */
	struct filter filter;
} shared = {};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} records SEC(".maps");

/* A bind() or listen() call that has not returned yet. */
struct call {
	__u64 sockaddr;	/* in user memory */
	__u32 fd;
	__u32 length;	/* of the sockaddr */
	__u32 opened;	/* sockops_listen has reported an open for this listen() */
};

/* The key is the thread: see this_thread(). */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct call);
} calls SEC(".maps");

/*
 * State that the kernel stores with a socket (sk_storage). Unlike a hash map, the storage has no size limit,
 * the kernel frees it together with the socket, and an access costs half as much as a lookup by cookie. At a
 * release, sockets without a mark are skipped at little cost.
 */
struct mark {
	__u8 kernel_chose_port;
	__u8 is_tracked;		/* a bound UDP socket: its release is reported */
	__u8 is_of_tree;		/* a watched process tree opened or holds the socket */
	__u32 excluded_generation;	/* filter.generation when the open was excluded, otherwise 0 */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct mark);
} marks SEC(".maps");

/* The processes of the watched trees. The key is the pid. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct member);
} members SEC(".maps");

/*
 * The listening subflows of MPTCP sockets that watched trees hold. The key is the address of the struct sock.
 * iter_sockets sees only the MPTCP socket, and cannot mark its subflow: no helper returns a pointer to the
 * subflow that bpf_sk_storage_get() accepts.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, __u8);
} tree_subflows SEC(".maps");

INLINE void count_dropped_record(void)
{
	__sync_fetch_and_add(&shared.dropped_records, 1);
}

INLINE void count_dropped_member(void)
{
	__sync_fetch_and_add(&shared.dropped_members, 1);
}

INLINE __u64 trees_of(struct task_struct *task)
{
	struct member *member;
	__u32 pid;

	if (!shared.trees)
		return 0;
	pid = pid_of(task);
	member = bpf_map_lookup_elem(&members, &pid);
	return member && member->start == start_ticks_of(task) ? member->trees & shared.trees : 0;
}

INLINE __u64 trees_of_current(void)
{
	return trees_of(this_task());
}

/*
 * Which pointers to a socket a helper accepts depends on the type of the calling program. In the functions
 * below, a pointer that is passed to helpers is declared as `void *sk`. A pointer that is used to read fields
 * is declared as `struct sock *sk`.
 */
INLINE struct mark *find_mark(void *sk)
{
	return bpf_sk_storage_get(&marks, sk, NULL, 0);
}

INLINE struct mark *find_or_create_mark(void *sk)
{
	return bpf_sk_storage_get(&marks, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
}

INLINE void mark_of_tree(void *sk)
{
	struct mark *mark = find_or_create_mark(sk);

	if (mark)
		mark->is_of_tree = 1;
}

INLINE bool is_of_tree(void *sk)
{
	struct mark *mark = find_mark(sk);

	return mark && mark->is_of_tree;
}

INLINE bool passes_filter(struct sock *sk, __u16 port)
{
	return !shared.filter_flags || matches_socket(&shared.filter, shared.filter_flags, sk, port);
}

INLINE bool watched_trees_only(void)
{
	return shared.filter_flags & FILTER_TREES;
}

/* True if the socket passes the filter by process tree. `trees` are those of the current process. */
INLINE bool must_report(void *sk, __u64 trees)
{
	return trees || !watched_trees_only() || is_of_tree(sk);
}

INLINE bool is_current_excluded(void)
{
	return shared.filter_flags & FILTER_CGROUPS && is_in_excluded_cgroup(&shared.filter, this_task());
}

/*
 * For an open: returns true if the current process is in an excluded cgroup. Stores this in the socket's mark,
 * so that the close is excluded too, whichever process it runs in.
 */
INLINE bool mark_if_excluded(void *sk)
{
	struct mark *mark;
	bool is_excluded;

	if (!(shared.filter_flags & FILTER_CGROUPS))
		return false;
	is_excluded = is_current_excluded();
	mark = is_excluded ? find_or_create_mark(sk) : find_mark(sk);
	if (mark)
		mark->excluded_generation = is_excluded ? shared.filter.generation : 0;
	return is_excluded;
}

/*
 * For a close: true if the current filter excluded the open. If only an earlier filter excluded it, the result
 * is false, because the current filter may include the socket.
 */
INLINE bool was_open_excluded(void *sk)
{
	struct mark *mark;

	if (!(shared.filter_flags & FILTER_CGROUPS))
		return false;
	mark = find_mark(sk);
	return mark && mark->excluded_generation == shared.filter.generation;
}

INLINE struct portwatch_record *reserve(enum portwatch_kind kind, struct sock *sk, __u64 trees)
{
	struct portwatch_record *record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);

	if (!record) {
		count_dropped_record();
		return NULL;
	}
	capture(record, kind, sk);
	record->trees = trees;
	return record;
}

/*
 * Reserves a record for an open. Returns NULL if the filter drops it. `helper_sk` points to the same socket as
 * `sk`, and is accepted by helpers.
 */
INLINE struct portwatch_record *reserve_open(struct sock *sk, void *helper_sk)
{
	__u64 trees = trees_of_current();

	if (trees)
		mark_of_tree(helper_sk);
	if (!passes_filter(sk, port_of(sk)) || !must_report(helper_sk, trees) || mark_if_excluded(helper_sk))
		return NULL;
	return reserve(PORTWATCH_OPEN, sk, trees);
}

/*
 * Reserves a record for a failure or a changed backlog. Returns NULL if the filter drops it. The filter is
 * applied to the calling process here, whichever process opened the socket.
 */
INLINE struct portwatch_record *reserve_for_caller(enum portwatch_kind kind, struct sock *sk, __u16 port)
{
	__u64 trees = trees_of_current();

	if (!passes_filter(sk, port) || (!trees && watched_trees_only()) || is_current_excluded())
		return NULL;
	return reserve(kind, sk, trees);
}

/* `requested` is the address that was passed to bind(), or NULL if it could not be read. */
INLINE void report_bind_failed(struct sock *sk, int error, const struct sockaddr_any *requested)
{
	__u16 port = requested ? __builtin_bswap16(requested->port) : port_of(sk);
	struct portwatch_record *record = reserve_for_caller(PORTWATCH_BIND_FAILED, sk, port);

	if (record) {
		record->error = error;
		if (requested)
			capture_requested_address(record, sk, requested);
		bpf_ringbuf_submit(record, 0);
	}
}

/*
 * Reports a listen() that did not open a port. If the call succeeded, the socket was already listening, and the
 * call changed its backlog.
 */
INLINE void report_listen_result(struct sock *sk, int result)
{
	struct portwatch_record *record;

	record = reserve_for_caller(result < 0 ? PORTWATCH_LISTEN_FAILED : PORTWATCH_BACKLOG, sk, port_of(sk));
	if (record) {
		record->error = result;
		bpf_ringbuf_submit(record, 0);
	}
}

/* May return 0 before 5.12. User space then identifies the socket by its inode. */
INLINE __u64 cookie_of(struct sock *sk)
{
	return settings.socket_helpers ? bpf_get_socket_cookie(sk) : stored_cookie_of(sk);
}

/*
 * Marks a socket that iter_sockets found in a watched tree, so that its close is reported. The close of an
 * MPTCP listener is seen on its subflow, so the subflow is added to tree_subflows instead.
 */
INLINE void mark_held_by_tree(struct sock *sk)
{
	__u64 subflow;
	__u8 yes = 1;

	if (protocol_of(sk) != IPPROTO_MPTCP) {
		mark_of_tree(sk);
	} else if (READ(sk, __sk_common.skc_state) == TCP_LISTEN) {
		subflow = (__u64)listening_sock(sk);
		if (bpf_map_update_elem(&tree_subflows, &subflow, &yes, 0))
			count_dropped_record();
	}
}

/*
 * For a close: returns true if the socket is in tree_subflows, and removes it, because another socket may get
 * its address.
 */
INLINE bool pop_tree_subflow(struct sock *sk)
{
	__u64 address = (__u64)sk;

	return is_subflow(sk) && !bpf_map_delete_elem(&tree_subflows, &address);
}

/*
 * While a tracing program runs on a CPU, the kernel does not run it there a second time. If another task
 * preempts the program and reaches the same hook, that event is missed. Disabling preemption prevents this.
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
	bool was_subflow_of_tree = kind == PORTWATCH_CLOSE && pop_tree_subflow(sk);
	struct portwatch_record *record;
	__u64 trees;

	if (!passes_filter(sk, last_port_of(sk)))
		return;
	trees = trees_of_current();
	if (settings.socket_helpers) {
		if (!was_subflow_of_tree && !must_report(sk, trees))
			return;
		if (trees)
			mark_of_tree(sk);
		if (kind == PORTWATCH_OPEN ? mark_if_excluded(sk) : was_open_excluded(sk))
			return;
	}
	record = reserve(kind, sk, trees);
	if (record) {
		record->cookie = cookie_of(sk);
		bpf_ringbuf_submit(record, 0);
	}
}

/* Reports an open or a close. For tracing programs only. */
INLINE void report(enum portwatch_kind kind, struct sock *sk)
{
	disable_preemption();
	report_unpreempted(kind, sk);
	enable_preemption();
}

INLINE void set_call_opened(void)
{
	__u64 thread = this_thread();
	struct call *call = bpf_map_lookup_elem(&calls, &thread);

	if (call)
		call->opened = 1;
}

/* Runs once for each change from CLOSE to LISTEN, only if listen() succeeds. The port is known by then. */
SEC("sockops")
int sockops_listen(struct bpf_sock_ops *ctx)
{
	struct portwatch_record *record;
	struct bpf_sock *bpf_sk;
	struct sock *sk;

	if (ctx->op != BPF_SOCK_OPS_TCP_LISTEN_CB)
		return 1;
	bpf_sk = ctx->sk;
	if (!bpf_sk)
		return 1;
	sk = bpf_skc_to_tcp_sock(bpf_sk);
	if (!sk)
		return 1;
	record = reserve_open(sk, bpf_sk);
	if (record) {
		record->cookie = bpf_get_socket_cookie(ctx);
		bpf_ringbuf_submit(record, 0);
	}
	set_call_opened();
	return 1;
}

/*
 * Runs before the port is taken, so a listen() that fails looks like an open and a close here. Therefore
 * sockops_listen reports the opens, and user space ignores closes of sockets that were never open. The programs
 * keep no map of open sockets for this purpose, because such a map could fill up.
 */
SEC("tp_btf/inet_sock_set_state")
int sock_set_state(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];

	if (is_listener_close(sk, ctx[1], ctx[2]))
		report(PORTWATCH_CLOSE, sk);
	return 0;
}

/*
 * Stores in the mark whether the kernel chooses the port. The post_bind hook cannot find out: the socket has a
 * port by then, whether the kernel or the program chose it, and the kernel sets sk_userlocks only after this
 * hook.
 */
INLINE int mark_port_choice(struct bpf_sock_addr *ctx)
{
	struct mark *mark;

	if (ctx->protocol != IPPROTO_UDP)
		return 1;
	mark = find_or_create_mark(ctx->sk);
	if (mark)
		mark->kernel_chose_port = ctx->user_port == 0;
	return 1;
}

SEC("cgroup/bind4")
int cgroup_bind4(struct bpf_sock_addr *ctx)
{
	return mark_port_choice(ctx);
}

SEC("cgroup/bind6")
int cgroup_bind6(struct bpf_sock_addr *ctx)
{
	return mark_port_choice(ctx);
}

INLINE int report_udp_bound(struct bpf_sock *ctx)
{
	struct sock *sk = (void *)ctx;
	struct portwatch_record *record;
	struct mark *mark;

	if (ctx->protocol != IPPROTO_UDP)
		return 1;
	mark = find_or_create_mark(ctx);
	if ((mark && mark->kernel_chose_port && !settings.ephemeral) || !has_file(sk))
		return 1;
	if (mark)
		mark->is_tracked = 1;
	record = reserve_open(sk, ctx);
	if (record) {
		record->cookie = bpf_get_socket_cookie(ctx);
		if (mark && !mark->kernel_chose_port)
			record->flags |= PORTWATCH_PORT_CHOSEN;
		bpf_ringbuf_submit(record, 0);
	}
	return 1;
}

SEC("cgroup/post_bind4")
int cgroup_post_bind4(struct bpf_sock *ctx)
{
	return report_udp_bound(ctx);
}

SEC("cgroup/post_bind6")
int cgroup_post_bind6(struct bpf_sock *ctx)
{
	return report_udp_bound(ctx);
}

INLINE bool is_tracked_udp(struct bpf_sock *ctx)
{
	struct mark *mark = find_mark(ctx);

	if (mark && mark->is_tracked)
		return true;
	/*
	 * Without the socket helpers, iter_sockets cannot mark sockets that were bound before the start. So
	 * report every release. User space ignores the releases of sockets that were not open.
	 */
	return !settings.socket_helpers && has_tracked_port((void *)ctx, settings.ephemeral);
}

SEC("cgroup/sock_release")
int cgroup_sock_release(struct bpf_sock *ctx)
{
	struct sock *sk = (void *)ctx;
	struct portwatch_record *record;

	if (ctx->protocol != IPPROTO_UDP || !is_tracked_udp(ctx))
		return 1;
	if (!passes_filter(sk, port_of(sk)) || !must_report(ctx, 0) || was_open_excluded(ctx))
		return 1;
	record = reserve(PORTWATCH_CLOSE, sk, trees_of_current());
	if (record) {
		record->cookie = bpf_get_socket_cookie(ctx);
		bpf_ringbuf_submit(record, 0);
	}
	return 1;
}

INLINE int begin_call(__u32 fd, __u64 sockaddr, __u32 length)
{
	struct call call = { .sockaddr = sockaddr, .fd = fd, .length = length };
	__u64 thread = this_thread();

	bpf_map_update_elem(&calls, &thread, &call, 0);
	return 0;
}

SEC("tp/syscalls/sys_enter_bind")
int sys_enter_bind(struct syscall_enter *ctx)
{
	return begin_call(ctx->args[0], ctx->args[1], ctx->args[2]);
}

/*
 * The address is read at the exit, because at the entry the read fails if the program has not touched the page
 * before. Another thread of the program can change the address during the call; strace has the same problem.
 */
SEC("tp/syscalls/sys_exit_bind")
int sys_exit_bind(struct syscall_exit *ctx)
{
	__u64 thread = this_thread();
	struct call *call = bpf_map_lookup_elem(&calls, &thread);
	struct sockaddr_any requested = {};
	struct sock *sk;

	if (!call)
		return 0;
	sk = ctx->ret < 0 ? sock_of_fd(call->fd) : NULL;
	if (sk)
		report_bind_failed(sk, ctx->ret,
				   read_user_sockaddr(&requested, (void *)call->sockaddr, call->length));
	bpf_map_delete_elem(&calls, &thread);
	return 0;
}

SEC("tp/syscalls/sys_enter_listen")
int sys_enter_listen(struct syscall_enter *ctx)
{
	return begin_call(ctx->args[0], 0, 0);
}

SEC("tp/syscalls/sys_exit_listen")
int sys_exit_listen(struct syscall_exit *ctx)
{
	__u64 thread = this_thread();
	struct call *call = bpf_map_lookup_elem(&calls, &thread);
	struct sock *sk;

	if (!call)
		return 0;
	sk = call->opened ? NULL : sock_of_fd(call->fd);
	if (sk && !is_udp(sk))
		report_listen_result(sk, ctx->ret);
	bpf_map_delete_elem(&calls, &thread);
	return 0;
}

/*
 * Returns the file's socket. With the socket helpers, this is a pointer that helpers accept. Without them, it
 * can only be used to read fields.
 */
INLINE struct sock *sock_of_iter_file(struct file *file)
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
	/* Load these pointers only once, because the verifier requires a check for NULL after each load. */
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct sock *sk;
	struct mark *mark;
	__u64 trees;

	if (!file || !task)
		return 0;
	sk = sock_of_iter_file(file);
	if (!sk || !is_selected(sk, shared.port))
		return 0;
	trees = trees_of(task);
	if (trees && settings.socket_helpers)
		mark_held_by_tree(sk);
	/* UDP sockets that were bound before the programs were attached have no mark yet. */
	if (!shared.port && settings.socket_helpers && is_udp(sk)) {
		mark = find_or_create_mark(sk);
		if (mark)
			mark->is_tracked = 1;
	}
	/*
	 * The open may have been excluded, but now a process outside the excluded cgroups holds the socket. So
	 * its close must be reported.
	 */
	if (settings.socket_helpers && shared.filter_flags & FILTER_CGROUPS &&
	    !is_in_excluded_cgroup(&shared.filter, task)) {
		mark = find_mark(sk);
		if (mark)
			mark->excluded_generation = 0;
	}
	write_holder(ctx, task, sk, cookie_of(sk), trees);
	return 0;
}

INLINE void add_child(struct task_struct *parent, struct task_struct *child)
{
	struct member member = { .trees = trees_of(parent) };
	__u32 pid;

	if (!member.trees || is_thread(child))
		return;
	member.start = start_ticks_of(child);
	pid = pid_of(child);
	if (bpf_map_update_elem(&members, &pid, &member, 0))
		count_dropped_member();
}

/* Runs before the child does. So the child is in `members` even if its parent exits at once. */
SEC("tp_btf/sched_process_fork")
int process_fork(__u64 *ctx)
{
	disable_preemption();
	add_child((void *)ctx[0], (void *)ctx[1]);
	enable_preemption();
	return 0;
}

INLINE void remove_member(struct task_struct *task)
{
	__u32 pid;

	if (!shared.trees || !is_last_thread(task))
		return;
	pid = pid_of(task);
	if (trees_of(task))
		bpf_map_delete_elem(&members, &pid);
}

/*
 * Runs before the process's files are closed. The closes of its sockets still pass a filter by process tree,
 * because the sockets are marked.
 */
SEC("tp_btf/sched_process_exit")
int process_exit(__u64 *ctx)
{
	disable_preemption();
	remove_member((void *)ctx[0]);
	enable_preemption();
	return 0;
}

#include "fentry.h"
