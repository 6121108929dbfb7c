// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * The programs of the bcc engine. bcc compiles them when the engine starts. There are two sets of hooks, of
 * which one is attached: the kprobes, or on kernels without kprobes the stable hooks. The stable hooks are the
 * same as in core.bpf.c. A program is named after its hook. docs/kernel-hooks.md says what each hook sees, and
 * why it was chosen.
 *
 * bcc rewrites this file, but not the headers. Therefore maps are used only in this file, and fields of kernel
 * structs and contexts are read only in headers.
 */
#include "kernel.h"
#include "portwatch.h"
#include "read.h"
#include "sock.h"
#include "task.h"
#include "capture.h"
#ifdef HAS_ITERATOR
#include "socket_iter.h"
#endif
#include "filter.h"
#include "contexts.h"

BPF_PERF_OUTPUT(records);

/* A bind() or listen() call that has not returned yet. */
struct call {
	__u64 sockaddr;	/* in user memory, or for kprobes in kernel memory */
	__u64 socket;	/* address of the struct socket; set by kprobes */
	__u32 fd;	/* set by system call tracepoints */
	__u32 length;	/* of the sockaddr */
	__u32 opened;	/* an open has been reported for this listen() */
};

/* The key is the thread: see this_thread(). */
BPF_TABLE(CALLS_TYPE, u64, struct call, calls, 4096);

/*
 * Passes a value from one hook to a later hook within the same bind() or listen(). The key is the thread.
 * `calls` cannot be used, because it already has an entry for the thread's bind() or listen() at that time.
 */
BPF_TABLE(CALLS_TYPE, u64, u64, nested_calls, 4096);

/* The processes of the watched trees. The key is the pid. */
BPF_TABLE("hash", u32, struct member, members, 65536);

/* Sockets that watched trees opened or hold, until their close. The key is the address of the struct sock. */
BPF_TABLE("hash", u64, u8, tree_sockets, 65536);

/* Sockets whose open was excluded. The key is the address, the value is filter.generation at the open. */
BPF_TABLE("hash", u64, u32, excluded_sockets, 16384);

/* Written by user space. */
struct control {
	u64 trees;	/* bit mask of the watched process trees */
	u32 filter_flags;	/* enum filter_flag */
	u32 port;	/* if not 0, iter_sockets reports only sockets on this port */
};
BPF_F_TABLE("array", u32, struct control, controls, 1, SHARED_FLAGS);

/* This is not part of `controls`, because get_control() returns a copy, and a filter is too large to copy. */
BPF_F_TABLE("array", u32, struct filter, filters, 1, SHARED_FLAGS);

/* Counters read by user space. */
struct drops {
	u64 records;	/* the kernel counts these too, but reports the count only with the next record */
	u64 members;
};
BPF_F_TABLE("array", u32, struct drops, drops, 1, SHARED_FLAGS);

INLINE void count_dropped_record(void)
{
	u32 index = 0;
	struct drops *count = drops.lookup(&index);

	if (count)
		__sync_fetch_and_add(&count->records, 1);
}

INLINE void count_dropped_member(void)
{
	u32 index = 0;
	struct drops *count = drops.lookup(&index);

	if (count)
		__sync_fetch_and_add(&count->members, 1);
}

INLINE struct control get_control(void)
{
	struct control none = {};
	u32 index = 0;
	struct control *control = controls.lookup(&index);

	return control ? *control : none;
}

INLINE u64 trees_of(struct task_struct *task)
{
	u64 watched = get_control().trees;
	struct member *member;
	u32 pid;

	if (!watched)
		return 0;
	pid = pid_of(task);
	member = members.lookup(&pid);
	return member && member->start == start_ticks_of(task) ? member->trees & watched : 0;
}

INLINE bool passes_filter(struct sock *sk, u16 port)
{
	u32 flags = get_control().filter_flags, index = 0;
	struct filter *filter = filters.lookup(&index);

	return !flags || !filter || matches_socket(filter, flags, sk, port);
}

INLINE bool watched_trees_only(void)
{
	return get_control().filter_flags & FILTER_TREES;
}

INLINE bool is_excluded(struct task_struct *task)
{
	u32 flags = get_control().filter_flags, index = 0;
	struct filter *filter = filters.lookup(&index);

	return flags & FILTER_CGROUPS && filter && is_in_excluded_cgroup(filter, task);
}

INLINE u32 filter_generation(void)
{
	u32 index = 0;
	struct filter *filter = filters.lookup(&index);

	return filter ? filter->generation : 0;
}

/*
 * For an open: returns true if the current process is in an excluded cgroup. If so, adds the socket to
 * excluded_sockets, so that the close is excluded too, whichever process it runs in.
 */
INLINE bool mark_if_excluded(struct sock *sk)
{
	u64 address = (u64)sk;
	u32 generation = filter_generation();

	if (!is_excluded(this_task())) {
		excluded_sockets.delete(&address);
		return false;
	}
	excluded_sockets.update(&address, &generation);
	return true;
}

/*
 * For a close: returns true if the current filter excluded the open. Removes the socket from excluded_sockets.
 * If only an earlier filter excluded the open, the result is false, because the current filter may include the
 * socket.
 */
INLINE bool pop_excluded_socket(struct sock *sk)
{
	u64 address = (u64)sk;
	u32 *generation = excluded_sockets.lookup(&address);
	bool is_current;

	if (!generation)
		return false;
	is_current = *generation == filter_generation();
	excluded_sockets.delete(&address);
	return is_current;
}

/*
 * For a close: returns true if the socket is in tree_sockets, and removes it, because another socket may get
 * its address.
 */
INLINE bool pop_tree_socket(struct sock *sk)
{
	u64 address = (u64)sk;

	return !tree_sockets.delete(&address);
}

/*
 * Sets record->trees. Returns true if the record passes the filter. If a watched tree opens the socket, adds
 * the socket to tree_sockets.
 */
INLINE bool must_report_open(struct portwatch_record *record, struct sock *sk)
{
	u64 address = (u64)sk;
	u8 yes = 1;

	record->trees = trees_of(this_task());
	if (record->trees && tree_sockets.update(&address, &yes))
		count_dropped_record();
	if (!passes_filter(sk, record->port))
		return false;
	if (!record->trees && watched_trees_only() && !tree_sockets.lookup(&address))
		return false;
	return !mark_if_excluded(sk);
}

/*
 * Sets record->trees. Returns true if the record passes the filter. Removes the socket from tree_sockets and
 * excluded_sockets.
 */
INLINE bool must_report_close(struct portwatch_record *record, struct sock *sk)
{
	bool was_of_tree = pop_tree_socket(sk), was_excluded = pop_excluded_socket(sk);

	record->trees = trees_of(this_task());
	if (was_excluded || !passes_filter(sk, last_port_of(sk)))
		return false;
	return was_of_tree || !watched_trees_only();
}

/*
 * For a failure or a changed backlog: sets record->trees, and returns true if the record passes the filter. The
 * filter is applied to the calling process here, whichever process opened the socket.
 */
INLINE bool must_report_for_caller(struct portwatch_record *record, struct sock *sk)
{
	struct task_struct *task = this_task();

	record->trees = trees_of(task);
	if (!passes_filter(sk, record->port) || is_excluded(task))
		return false;
	return record->trees || !watched_trees_only();
}

INLINE void submit(void *ctx, struct portwatch_record *record)
{
	if (records.perf_submit(ctx, record, sizeof(*record)))
		count_dropped_record();
}

/* User space identifies a socket by its cookie, or by its address if the hook cannot create a cookie. */
struct identity {
	u64 cookie;
	u64 address;
};

INLINE struct identity by_cookie(u64 cookie)
{
	struct identity identity = { .cookie = cookie };

	return identity;
}

/* Includes the cookie if the socket already has one. */
INLINE struct identity by_address(struct sock *sk)
{
	struct identity identity = { .cookie = stored_cookie_of(sk), .address = (u64)sk };

	return identity;
}

INLINE void report_open(void *ctx, struct sock *sk, struct identity identity, u32 flags)
{
	struct portwatch_record record;

	capture(&record, PORTWATCH_OPEN, sk);
	record.cookie = identity.cookie;
	record.sock = identity.address;
	record.flags |= flags;
	if (must_report_open(&record, sk))
		submit(ctx, &record);
}

INLINE void report_close(void *ctx, struct sock *sk, struct identity identity)
{
	struct portwatch_record record;

	capture(&record, PORTWATCH_CLOSE, sk);
	record.cookie = identity.cookie;
	record.sock = identity.address;
	if (must_report_close(&record, sk))
		submit(ctx, &record);
}

/* `requested` is the address that was passed to bind(), or NULL if it could not be read. */
INLINE void report_bind_failed(void *ctx, struct sock *sk, int error, const struct sockaddr_any *requested)
{
	struct portwatch_record record;

	capture(&record, PORTWATCH_BIND_FAILED, sk);
	record.error = error;
	if (requested)
		capture_requested_address(&record, sk, requested);
	if (must_report_for_caller(&record, sk))
		submit(ctx, &record);
}

/*
 * Reports a listen() that did not open a port. If the call succeeded, the socket was already listening, and the
 * call changed its backlog.
 */
INLINE void report_listen_result(void *ctx, struct sock *sk, int result)
{
	struct identity identity = by_address(sk);
	struct portwatch_record record;

	capture(&record, result < 0 ? PORTWATCH_LISTEN_FAILED : PORTWATCH_BACKLOG, sk);
	record.cookie = identity.cookie;
	record.sock = identity.address;
	record.error = result;
	if (must_report_for_caller(&record, sk))
		submit(ctx, &record);
}

INLINE void set_call_opened(void)
{
	u64 thread = this_thread();
	struct call *call = calls.lookup(&thread);

	if (call)
		call->opened = 1;
}

INLINE int begin_call(struct call *call)
{
	u64 thread = this_thread();

	calls.update(&thread, call);
	return 0;
}

/* Stable hooks. Comments in core.bpf.c that apply to these programs too are not repeated. */

int sockops_listen(struct bpf_sock_ops *ctx)
{
	struct sock *sk = sock_of_listen_cb(ctx);

	if (!sk)
		return 1;
	report_open(ctx, sk, by_cookie(bpf_get_socket_cookie(ctx)), 0);
	set_call_opened();
	return 1;
}

int sock_set_state(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sk = closing_listener(ctx);

	if (sk)
		report_close(ctx, sk, by_address(sk));
	return 0;
}

/* Tells cgroup_post_bind whether the kernel chooses the port, because that hook cannot find out. */
int cgroup_bind(struct bpf_sock_addr *ctx)
{
	u64 thread = this_thread();
	u64 kernel_chooses_port = lets_kernel_choose_port(ctx);

	if (is_udp_bind(ctx))
		nested_calls.update(&thread, &kernel_chooses_port);
	return 1;
}

int cgroup_post_bind(struct bpf_sock *ctx)
{
	u64 thread = this_thread();
	struct sock *sk = udp_sock_of(ctx);
	u64 *nested, kernel_chose_port;

	if (!sk)
		return 1;
	nested = nested_calls.lookup(&thread);
	kernel_chose_port = nested ? *nested : 0;
	nested_calls.delete(&thread);
	if ((kernel_chose_port && !EPHEMERAL) || !has_file(sk))
		return 1;
	report_open(ctx, sk, by_cookie(bpf_get_socket_cookie(ctx)), kernel_chose_port ? 0 : PORTWATCH_PORT_CHOSEN);
	return 1;
}

int cgroup_sock_release(struct bpf_sock *ctx)
{
	struct sock *sk = udp_sock_of(ctx);

	if (sk && has_tracked_port(sk, EPHEMERAL))
		report_close(ctx, sk, by_cookie(bpf_get_socket_cookie(ctx)));
	return 1;
}

int sys_enter_bind(struct syscall_enter *ctx)
{
	struct call call = {};

	call.fd = syscall_argument(ctx, 0);
	call.sockaddr = syscall_argument(ctx, 1);
	call.length = syscall_argument(ctx, 2);
	return begin_call(&call);
}

int sys_exit_bind(struct syscall_exit *ctx)
{
	u64 thread = this_thread();
	struct call *call = calls.lookup(&thread);
	struct sockaddr_any requested = {};
	int result = syscall_result(ctx);
	struct sock *sk;

	if (!call)
		return 0;
	sk = result < 0 ? sock_of_fd(call->fd) : NULL;
	if (sk)
		report_bind_failed(ctx, sk, result,
				   read_user_sockaddr(&requested, (void *)call->sockaddr, call->length));
	calls.delete(&thread);
	return 0;
}

int sys_enter_listen(struct syscall_enter *ctx)
{
	struct call call = {};

	call.fd = syscall_argument(ctx, 0);
	return begin_call(&call);
}

int sys_exit_listen(struct syscall_exit *ctx)
{
	u64 thread = this_thread();
	struct call *call = calls.lookup(&thread);
	struct sock *sk;

	if (!call)
		return 0;
	sk = call->opened ? NULL : sock_of_fd(call->fd);
	if (sk && !is_udp(sk))
		report_listen_result(ctx, sk, syscall_result(ctx));
	calls.delete(&thread);
	return 0;
}

/* Kprobes. */

/*
 * Runs once for each change from CLOSE to LISTEN, including that of an MPTCP listener's subflow. `sk` is the
 * first argument on all kernels.
 */
int inet_csk_listen_start_entry(struct pt_regs *ctx)
{
	u64 thread = this_thread();
	u64 sk = PT_REGS_PARM1(ctx);

	nested_calls.update(&thread, &sk);
	return 0;
}

int inet_csk_listen_start_exit(struct pt_regs *ctx)
{
	u64 thread = this_thread();
	u64 *nested = nested_calls.lookup(&thread);
	struct sock *sk;

	if (!nested)
		return 0;
	sk = (void *)*nested;
	nested_calls.delete(&thread);
	if ((int)PT_REGS_RC(ctx) || !is_tcp(sk))
		return 0;
	report_open(ctx, sk, by_address(sk), 0);
	set_call_opened();
	return 0;
}

int inet_csk_listen_stop_entry(struct pt_regs *ctx)
{
	struct sock *sk = (void *)PT_REGS_PARM1(ctx);

	if (is_tcp(sk))
		report_close(ctx, sk, by_address(sk));
	return 0;
}

/* Also runs for every TCP connection that is closed, so it must return early for TCP sockets. */
int inet_release_entry(struct pt_regs *ctx)
{
	struct sock *sk = sock_of_socket((void *)PT_REGS_PARM1(ctx));

	if (sk && is_udp(sk) && has_tracked_port(sk, EPHEMERAL))
		report_close(ctx, sk, by_address(sk));
	return 0;
}

/* udp_lib_get_port(sk, snum, ...): snum is 0 if the kernel chooses the port, for example for a DNS query. */
int udp_lib_get_port_entry(struct pt_regs *ctx)
{
	u64 thread = this_thread();
	u64 sk = PT_REGS_PARM1(ctx);
	bool program_chooses_port = (unsigned short)PT_REGS_PARM2(ctx);

	/* If the exit of an earlier call was missed, the map still has that call's socket. */
	nested_calls.delete(&thread);
	if (!program_chooses_port && !EPHEMERAL)
		return 0;
	if (!is_udp((void *)sk) || !has_file((void *)sk))
		return 0;
	sk |= program_chooses_port;	/* a flag in the lowest bit, which is 0 in every pointer */
	nested_calls.update(&thread, &sk);
	return 0;
}

int udp_lib_get_port_exit(struct pt_regs *ctx)
{
	u64 thread = this_thread();
	u64 *nested = nested_calls.lookup(&thread);
	struct sock *sk;
	bool program_chose;

	if (!nested)
		return 0;
	program_chose = *nested & 1;
	sk = (void *)(*nested & ~1ULL);
	nested_calls.delete(&thread);
	if ((int)PT_REGS_RC(ctx))
		return 0;
	report_open(ctx, sk, by_address(sk), program_chose ? PORTWATCH_PORT_CHOSEN : 0);
	return 0;
}

/*
 * Attached to inet_bind, inet6_bind and mptcp_bind, which may call each other. The exit of the inner function
 * reports the failure and removes the entry from `calls`, so that the exit of the outer function does not
 * report it again.
 */
int bind_entry(struct pt_regs *ctx)
{
	struct call call = {};

	call.socket = PT_REGS_PARM1(ctx);
	call.sockaddr = PT_REGS_PARM2(ctx);
	call.length = PT_REGS_PARM3(ctx);
	return begin_call(&call);
}

int bind_exit(struct pt_regs *ctx)
{
	u64 thread = this_thread();
	struct call *call = calls.lookup(&thread);
	struct sockaddr_any requested = {};
	int result = PT_REGS_RC(ctx);
	struct sock *sk;

	if (!call)
		return 0;
	sk = result < 0 ? sock_of_socket((void *)call->socket) : NULL;
	if (sk && is_supported(sk))
		report_bind_failed(ctx, sk, result,
				   read_kernel_sockaddr(&requested, (void *)call->sockaddr, call->length));
	calls.delete(&thread);
	return 0;
}

/* Attached to inet_listen and mptcp_listen. Before 6.6, mptcp_listen calls inet_listen. */
int listen_entry(struct pt_regs *ctx)
{
	struct call call = {};

	call.socket = PT_REGS_PARM1(ctx);
	return begin_call(&call);
}

int listen_exit(struct pt_regs *ctx)
{
	u64 thread = this_thread();
	struct call *call = calls.lookup(&thread);
	struct sock *sk;

	if (!call)
		return 0;
	sk = call->opened ? NULL : sock_of_socket((void *)call->socket);
	if (sk && is_supported(sk))
		report_listen_result(ctx, sk, PT_REGS_RC(ctx));
	calls.delete(&thread);
	return 0;
}

/* Process trees. */

int process_fork(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *parent = raw_argument(ctx, 0), *child = raw_argument(ctx, 1);
	struct member member = {};
	u32 pid;

	member.trees = trees_of(parent);
	if (!member.trees || is_thread(child))
		return 0;
	member.start = start_ticks_of(child);
	pid = pid_of(child);
	if (members.update(&pid, &member))
		count_dropped_member();
	return 0;
}

int process_exit(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = raw_argument(ctx, 0);
	u32 pid;

	if (!is_last_thread(task) || !trees_of(task))
		return 0;
	pid = pid_of(task);
	members.delete(&pid);
	return 0;
}

#ifdef HAS_ITERATOR

int iter_sockets(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = task_of_iter(ctx);
	struct sock *sk = sock_of_iter(ctx, get_control().port);
	u64 address, trees;
	u8 yes = 1;

	if (!sk || !task)
		return 0;
	trees = trees_of(task);
	address = trees ? (u64)sock_reported_on_close(sk) : 0;
	if (address && tree_sockets.update(&address, &yes))
		count_dropped_record();
	address = (u64)listening_sock(sk);
	/*
	 * The open may have been excluded, but now a process outside the excluded cgroups holds the socket. So
	 * its close must be reported.
	 */
	if (!is_excluded(task))
		excluded_sockets.delete(&address);
	write_holder(ctx, task, sk, bpf_get_socket_cookie(sk), trees);
	return 0;
}

#endif
