/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* What the programs read from a task_struct: its process and its cgroup. */
#ifndef TASK_H
#define TASK_H

#define TICK_NS 10000000	/* USER_HZ is 100 */

/*
 * A process of watched trees: the value of the map `members`, whose key is the pid.
 * portwatch/engines/core/member_map.py mirrors it.
 */
struct member {
	__u64 start;	/* in clock ticks, as in /proc/PID/stat; tells apart two processes with the same pid */
	__u64 trees;	/* bit mask */
};

INLINE struct task_struct *this_task(void)
{
	return (void *)bpf_get_current_task();
}

/*
 * The key of the current thread in maps. Not bpf_get_current_pid_tgid(): sockops programs
 * may not call it before 6.12.
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

/* True unless the task is the leader of its thread group. */
INLINE bool is_thread(struct task_struct *task)
{
	return READ(task, pid) != READ(task, tgid);
}

/* At sched_process_exit: true if the whole process ends, false if other threads of it still run. */
INLINE bool is_last_thread(struct task_struct *task)
{
	struct signal_struct *signal = READ(task, signal);

	return READ(signal, live.counter) == 0;
}

/* The kernel never gives an id to a second cgroup. */
INLINE __u64 id_of_cgroup(struct cgroup *cgroup)
{
	struct kernfs_node *kn = READ(cgroup, kn);

	return READ(kn, KERNFS_ID);
}

/*
 * The cgroup that tells most about where a process runs. Usually v2's. On v1 and hybrid hosts
 * all processes may be in the root of v2, so there it is the memory controller's.
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
