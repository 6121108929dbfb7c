/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Functions that read the process and the cgroup of a task. */
#ifndef TASK_H
#define TASK_H

#define TICK_NS 10000000	/* length of a clock tick; USER_HZ is 100 */

/*
 * A process that belongs to watched process trees. Its pid is the key in the map `members`.
 * portwatch/engines/core/member_map.py has the same layout.
 */
struct member {
	__u64 start;	/* start time in clock ticks, as in /proc/PID/stat, because pids are reused */
	__u64 trees;	/* bit mask of the trees that the process belongs to */
};

INLINE struct task_struct *this_task(void)
{
	return (void *)bpf_get_current_task();
}

/*
 * Returns the current thread's key in maps. bpf_get_current_pid_tgid() would also work, but before 6.12,
 * sockops programs may not call it.
 */
INLINE __u64 this_thread(void)
{
	return bpf_get_current_task();
}

INLINE __u32 pid_of(struct task_struct *task)
{
	return READ(task, tgid);
}

INLINE __u64 start_ticks_of(struct task_struct *task)
{
	struct task_struct *leader = READ(task, group_leader);

	return READ(leader, start_boottime) / TICK_NS;
}

/* True for every thread of a process except the first one, the leader of the thread group. */
INLINE bool is_thread(struct task_struct *task)
{
	return READ(task, pid) != READ(task, tgid);
}

/* For sched_process_exit: true if the process has no other running thread, so that the whole process exits. */
INLINE bool is_last_thread(struct task_struct *task)
{
	struct signal_struct *signal = READ(task, signal);

	return READ(signal, live.counter) == 0;
}

/* The kernel never reuses this id for another cgroup. */
INLINE __u64 id_of_cgroup(struct cgroup *cgroup)
{
	struct kernfs_node *kn = READ(cgroup, kn);

	return READ(kn, KERNFS_ID);
}

/*
 * Returns the cgroup that best identifies the service or container of a process. On hosts with cgroup v2
 * only, this is the v2 cgroup. On v1 and hybrid hosts, all processes may be in the root of v2, so the cgroup
 * of the v1 memory controller is returned.
 */
INLINE struct cgroup *most_specific_cgroup(struct css_set *cgroups, struct cgroup *v2)
{
	struct cgroup_subsys_state *state = NULL;
	struct cgroup *memory;

	if (memory_controller() >= 0)
		bpf_probe_read_kernel(&state, sizeof(state),
				      (const char *)&cgroups->subsys[0] + memory_controller() * sizeof(state));
	if (!state)
		return v2;
	memory = READ(state, cgroup);
	return READ(memory, root) == READ(v2, root) ? v2 : memory;
}

#endif
