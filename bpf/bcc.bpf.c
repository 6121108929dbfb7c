// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * The programs for bcc, compiled when the engine starts. Two sets of hooks, of which
 * one is attached as a whole: kprobes, and where the kernel has none the stable hooks
 * of core.bpf.c. Which hook is exact about what is told in docs/hooks.md.
 *
 * bcc rewrites this file, not what it includes: maps are used here, the kernel's and
 * the contexts' fields are read in the headers.
 */
#include "kernel.h"
#include "portwatch.h"
#include "read.h"
#include "capture.h"
#ifdef HAS_ITERATOR
#include "socket_iter.h"
#endif
#include "tree.h"
#include "filter.h"
#include "contexts.h"

/* A call under way in a thread, from its entry to its exit. */
struct call {
	__u64 address;	/* of the sockaddr, in user space; of kprobes in the kernel's */
	__u64 socket;	/* struct socket *, where the call is known by it */
	__u32 fd;
	__u32 length;	/* of the sockaddr */
	__u32 opened;	/* the listen was reported as an open */
};

BPF_PERF_OUTPUT(records);
BPF_TABLE(CALLS_TYPE, u64, struct call, calls, 4096);
/* What a bind or listen under way in a thread is about, between two hooks inside the call. */
BPF_TABLE(CALLS_TYPE, u64, u64, inner, 4096);
/*
 * Processes of the watched trees, and by their address in the kernel the sockets that these had, of
 * which a close will be told: it takes them out again.
 */
BPF_TABLE("hash", u32, struct member, members, 65536);
BPF_TABLE("hash", u64, u8, of_tree, 65536);
/* Those that were opened outside of the wanted cgroups, in which generation: their closes are not told. */
BPF_TABLE("hash", u64, u32, excluded_opens, 16384);

/* What the reader asks for. */
struct control {
	u64 trees;	/* that are watched, a bit for each */
	u32 filter_flags;	/* what is not told: of enum filter_flag */
	u32 port;	/* whose users the next pass shows, 0 for all that is open */
};
BPF_F_TABLE("array", u32, struct control, controls, 1, SHARED_FLAGS);

/* Too large to be asked for with the rest, which is copied. */
BPF_F_TABLE("array", u32, struct filter, filters, 1, SHARED_FLAGS);

/* What there was no room for. */
struct drops {
	u64 records;	/* of which the kernel itself tells only with the next one that has room */
	u64 members;
};
BPF_F_TABLE("array", u32, struct drops, drops, 1, SHARED_FLAGS);

INLINE void count_lost_record(void)
{
	u32 first = 0;
	struct drops *count = drops.lookup(&first);

	if (count)
		__sync_fetch_and_add(&count->records, 1);
}

INLINE void count_missed_member(void)
{
	u32 first = 0;
	struct drops *count = drops.lookup(&first);

	if (count)
		__sync_fetch_and_add(&count->members, 1);
}

INLINE void submit(void *ctx, struct portwatch_record *record)
{
	if (records.perf_submit(ctx, record, sizeof(*record)))
		count_lost_record();
}

INLINE struct control control(void)
{
	struct control nothing = {};
	u32 first = 0;
	struct control *request = controls.lookup(&first);

	return request ? *request : nothing;
}

static u64 trees_of(struct task_struct *task)
{
	u64 watched = control().trees;
	struct member *member;
	u32 pid;

	if (!watched)
		return 0;
	pid = pid_of(task);
	member = members.lookup(&pid);
	return member && member->start == start_of(task) ? member->trees & watched : 0;
}

static bool passes_filter(struct sock *sk, u16 port)
{
	u32 flags = control().filter_flags, first = 0;
	struct filter *wanted = filters.lookup(&first);

	return !flags || !wanted || filter_passes(wanted, flags, sk, port);
}

/* Whether what a process of no watched tree does is told. */
INLINE bool reports_all_processes(void)
{
	return !(control().filter_flags & FILTER_TREES);
}

static bool is_outside(struct task_struct *task)
{
	u32 flags = control().filter_flags, first = 0;
	struct filter *wanted = filters.lookup(&first);

	return flags & FILTER_CGROUPS && wanted && is_in_excluded_cgroup(wanted, task);
}

static u32 generation(void)
{
	u32 first = 0;
	struct filter *wanted = filters.lookup(&first);

	return wanted ? wanted->generation : 0;
}

INLINE bool is_open_excluded(struct sock *sk)
{
	u64 address = (u64)sk;
	u32 now = generation();

	if (!is_outside((void *)bpf_get_current_task())) {
		excluded_opens.delete(&address);
		return false;
	}
	excluded_opens.update(&address, &now);
	return true;
}

/* Not in an earlier generation, since what was not wanted then can be now. */
INLINE bool is_close_excluded(struct sock *sk)
{
	u64 address = (u64)sk;
	u32 *noted = excluded_opens.lookup(&address);
	bool it;

	if (!noted)
		return false;
	it = *noted == generation();
	excluded_opens.delete(&address);
	return it;
}

/* Of an open: fills its trees, and whether it is told. Its socket is then known to be theirs. */
INLINE bool must_report_open(struct portwatch_record *record, struct sock *sk)
{
	u64 address = (u64)sk;
	u8 yes = 1;

	record->trees = trees_of((void *)bpf_get_current_task());
	if (record->trees && of_tree.update(&address, &yes))
		count_lost_record();
	if (!passes_filter(sk, record->port))
		return false;
	if (!record->trees && !reports_all_processes() && !of_tree.lookup(&address))
		return false;
	return !is_open_excluded(sk);
}

/* Of a close, with which the address becomes another socket's. */
INLINE bool must_report_close(struct portwatch_record *record, struct sock *sk)
{
	u64 address = (u64)sk;
	bool had = !of_tree.delete(&address), outside = is_close_excluded(sk);

	record->trees = trees_of((void *)bpf_get_current_task());
	if (outside || !passes_filter(sk, last_port_of(sk)))
		return false;
	return had || reports_all_processes();
}

/* Of what is told only if a watched tree does it itself. */
INLINE bool must_report_for_actor(struct portwatch_record *record, struct sock *sk)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	record->trees = trees_of(task);
	if (!passes_filter(sk, record->port) || is_outside(task))
		return false;
	return record->trees || reports_all_processes();
}

INLINE void mark_opened(void)
{
	u64 thread = bpf_get_current_task();
	struct call *call = calls.lookup(&thread);

	if (call)
		call->opened = 1;
}

/* Stable hooks: what core.bpf.c does, with the marks of UDP sockets read from the socket. */

int listen_opened(struct bpf_sock_ops *ctx)
{
	struct portwatch_record record;
	struct sock *sk = listening_sock(ctx);

	if (!sk)
		return 1;
	capture(&record, PORTWATCH_OPEN, sk);
	record.cookie = bpf_get_socket_cookie(ctx);
	if (must_report_open(&record, sk))
		submit(ctx, &record);
	mark_opened();
	return 1;
}

int listen_closed(struct bpf_raw_tracepoint_args *ctx)
{
	struct portwatch_record record;
	struct sock *sk = sock_that_stops(ctx);

	if (!sk)
		return 0;
	capture(&record, PORTWATCH_CLOSE, sk);
	capture_identity(&record, sk);
	if (must_report_close(&record, sk))
		submit(ctx, &record);
	return 0;
}

/* The bound port no longer tells who chose it: sk_userlocks is set after post_bind. */
int bind_asked(struct bpf_sock_addr *ctx)
{
	u64 thread = bpf_get_current_task();
	u64 kernel_chooses = asks_kernel_to_choose(ctx);

	if (is_udp_bind(ctx))
		inner.update(&thread, &kernel_chooses);
	return 1;
}

int udp_bound(struct bpf_sock *ctx)
{
	u64 thread = bpf_get_current_task();
	struct sock *sk = udp_sock(ctx);
	struct portwatch_record record;
	u64 *noted, kernel_chose;

	if (!sk)
		return 1;
	noted = inner.lookup(&thread);
	kernel_chose = noted ? *noted : 0;
	inner.delete(&thread);
	if ((kernel_chose && !EPHEMERAL) || !has_file(sk))
		return 1;
	capture(&record, PORTWATCH_OPEN, sk);
	record.cookie = bpf_get_socket_cookie(ctx);
	if (!kernel_chose)
		record.flags |= PORTWATCH_PORT_CHOSEN;
	if (must_report_open(&record, sk))
		submit(ctx, &record);
	return 1;
}

int udp_released(struct bpf_sock *ctx)
{
	struct sock *sk = udp_sock(ctx);
	struct portwatch_record record;

	if (!sk || !is_tracked_udp(sk))
		return 1;
	capture(&record, PORTWATCH_CLOSE, sk);
	record.cookie = bpf_get_socket_cookie(ctx);
	if (must_report_close(&record, sk))
		submit(ctx, &record);
	return 1;
}

INLINE void report_bind_failed(void *ctx, struct sock *sk, int error, const struct sockaddr_any *asked)
{
	struct portwatch_record record;

	capture(&record, PORTWATCH_BIND_FAILED, sk);
	record.error = error;
	if (asked)
		capture_requested(&record, sk, asked);
	if (must_report_for_actor(&record, sk))
		submit(ctx, &record);
}

/* A listen that succeeded and opened nothing found a listener, and changed its backlog. */
INLINE void report_listen(void *ctx, struct sock *sk, int result)
{
	struct portwatch_record record;

	capture(&record, result < 0 ? PORTWATCH_LISTEN_FAILED : PORTWATCH_BACKLOG, sk);
	capture_identity(&record, sk);
	record.error = result;
	if (must_report_for_actor(&record, sk))
		submit(ctx, &record);
}

/* The address is read at the exit: at the entry its page may never have been touched. */
int bind_entered(struct syscall_enter *ctx)
{
	u64 thread = bpf_get_current_task();
	struct call call = {};

	call.fd = syscall_argument(ctx, 0);
	call.address = syscall_argument(ctx, 1);
	call.length = syscall_argument(ctx, 2);
	calls.update(&thread, &call);
	return 0;
}

int bind_exited(struct syscall_exit *ctx)
{
	u64 thread = bpf_get_current_task();
	struct call *call = calls.lookup(&thread);
	struct sockaddr_any asked = {};
	int result = syscall_result(ctx);
	struct sock *sk;
	bool is_read;

	if (!call)
		return 0;
	sk = result < 0 ? sock_of_fd(call->fd) : NULL;
	if (sk) {
		is_read = read_asked(&asked, (void *)call->address, call->length);
		report_bind_failed(ctx, sk, result, is_read ? &asked : NULL);
	}
	calls.delete(&thread);
	return 0;
}

int listen_entered(struct syscall_enter *ctx)
{
	u64 thread = bpf_get_current_task();
	struct call call = {};

	call.fd = syscall_argument(ctx, 0);
	calls.update(&thread, &call);
	return 0;
}

int listen_exited(struct syscall_exit *ctx)
{
	u64 thread = bpf_get_current_task();
	struct call *call = calls.lookup(&thread);
	struct sock *sk;

	if (!call)
		return 0;
	sk = call->opened ? NULL : sock_of_fd(call->fd);
	if (sk && !is_udp(sk))
		report_listen(ctx, sk, syscall_result(ctx));
	calls.delete(&thread);
	return 0;
}

/* Kprobes. */

/* Exactly one for each CLOSE to LISTEN, MPTCP's subflow too; takes sk first in every kernel. */
int listen_starts(struct pt_regs *ctx)
{
	u64 thread = bpf_get_current_task();
	u64 sk = PT_REGS_PARM1(ctx);

	inner.update(&thread, &sk);
	return 0;
}

int listen_started(struct pt_regs *ctx)
{
	u64 thread = bpf_get_current_task();
	struct portwatch_record record;
	u64 *noted = inner.lookup(&thread);
	struct sock *sk;

	if (!noted)
		return 0;
	sk = (void *)*noted;
	inner.delete(&thread);
	if ((int)PT_REGS_RC(ctx) || !is_tcp(sk))
		return 0;
	capture(&record, PORTWATCH_OPEN, sk);
	capture_identity(&record, sk);
	if (must_report_open(&record, sk))
		submit(ctx, &record);
	mark_opened();
	return 0;
}

int listen_stops(struct pt_regs *ctx)
{
	struct sock *sk = (void *)PT_REGS_PARM1(ctx);
	struct portwatch_record record;

	if (!is_tcp(sk))
		return 0;
	capture(&record, PORTWATCH_CLOSE, sk);
	capture_identity(&record, sk);
	if (must_report_close(&record, sk))
		submit(ctx, &record);
	return 0;
}

/* On inet_release, which runs for every connection that a busy server closes. */
int udp_releases(struct pt_regs *ctx)
{
	struct sock *sk = sock_of_socket((void *)PT_REGS_PARM1(ctx));
	struct portwatch_record record;

	if (!sk || !is_udp(sk) || !is_tracked_udp(sk))
		return 0;
	capture(&record, PORTWATCH_CLOSE, sk);
	capture_identity(&record, sk);
	if (must_report_close(&record, sk))
		submit(ctx, &record);
	return 0;
}

/* On udp_lib_get_port(sk, snum): snum is 0 where the kernel chooses, as for every DNS query. */
int udp_takes(struct pt_regs *ctx)
{
	u64 thread = bpf_get_current_task();
	u64 sk = PT_REGS_PARM1(ctx);
	bool chosen = (unsigned short)PT_REGS_PARM2(ctx);

	/* What a call left behind whose exit was missed is not this one's. */
	inner.delete(&thread);
	if (!chosen && !EPHEMERAL)
		return 0;
	if (!is_udp((void *)sk) || !has_file((void *)sk))
		return 0;
	sk |= chosen;	/* a pointer's lowest bit is free */
	inner.update(&thread, &sk);
	return 0;
}

int udp_taken(struct pt_regs *ctx)
{
	u64 thread = bpf_get_current_task();
	struct portwatch_record record;
	u64 *noted = inner.lookup(&thread);
	struct sock *sk;
	bool chosen;

	if (!noted)
		return 0;
	chosen = *noted & 1;
	sk = (void *)(*noted & ~1ULL);
	inner.delete(&thread);
	if ((int)PT_REGS_RC(ctx))
		return 0;
	capture(&record, PORTWATCH_OPEN, sk);
	capture_identity(&record, sk);
	if (chosen)
		record.flags |= PORTWATCH_PORT_CHOSEN;
	if (must_report_open(&record, sk))
		submit(ctx, &record);
	return 0;
}

/*
 * On inet_bind, inet6_bind and mptcp_bind, which may call each other: the inner one's
 * exit reports and forgets the call, so the outer one's finds nothing to report.
 */
int socket_binds(struct pt_regs *ctx)
{
	u64 thread = bpf_get_current_task();
	struct call call = {};

	call.socket = PT_REGS_PARM1(ctx);
	call.address = PT_REGS_PARM2(ctx);
	call.length = PT_REGS_PARM3(ctx);
	calls.update(&thread, &call);
	return 0;
}

int socket_bound(struct pt_regs *ctx)
{
	u64 thread = bpf_get_current_task();
	struct call *call = calls.lookup(&thread);
	struct sockaddr_any asked = {};
	int result = PT_REGS_RC(ctx);
	struct sock *sk;
	bool is_read;

	if (!call)
		return 0;
	sk = result < 0 ? our_sock_of((void *)call->socket) : NULL;
	if (sk) {
		is_read = read_asked_in_kernel(&asked, (void *)call->address, call->length);
		report_bind_failed(ctx, sk, result, is_read ? &asked : NULL);
	}
	calls.delete(&thread);
	return 0;
}

/* On inet_listen and mptcp_listen, of which the latter calls the former until 6.6. */
int socket_listens(struct pt_regs *ctx)
{
	u64 thread = bpf_get_current_task();
	struct call call = {};

	call.socket = PT_REGS_PARM1(ctx);
	calls.update(&thread, &call);
	return 0;
}

int socket_listened(struct pt_regs *ctx)
{
	u64 thread = bpf_get_current_task();
	struct call *call = calls.lookup(&thread);
	struct sock *sk;

	if (!call)
		return 0;
	sk = call->opened ? NULL : our_sock_of((void *)call->socket);
	if (sk)
		report_listen(ctx, sk, PT_REGS_RC(ctx));
	calls.delete(&thread);
	return 0;
}

/* Process trees: what core.bpf.c does. */

int process_forked(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *parent = raw_argument(ctx, 0), *child = raw_argument(ctx, 1);
	struct member member = {};
	u32 pid;

	member.trees = trees_of(parent);
	if (!member.trees || is_thread(child))
		return 0;
	member.start = start_of(child);
	pid = pid_of(child);
	if (members.update(&pid, &member))
		count_missed_member();
	return 0;
}

int process_exited(struct bpf_raw_tracepoint_args *ctx)
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
	struct task_struct *task = held_by(ctx);
	struct sock *sk = held_sock(ctx, control().port);
	u64 address, trees;
	u8 yes = 1;

	if (!sk || !task)
		return 0;
	trees = trees_of(task);
	address = trees ? (u64)sock_that_is_told_of(sk) : 0;
	if (address && of_tree.update(&address, &yes))
		count_lost_record();
	address = (u64)sock_that_listens(sk);
	/* Opened outside, and passed on to somebody wanted, its close is. */
	if (!is_outside(task))
		excluded_opens.delete(&address);
	show_held(ctx, task, sk, trees);
	return 0;
}

#endif
