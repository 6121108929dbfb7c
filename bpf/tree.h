/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Who belongs to a process tree: what of it is read from tasks. Maps are the includer's. */
#ifndef TREE_H
#define TREE_H

#define TICK_NS 10000000	/* USER_HZ is 100 wherever /proc is read */

/* A process of watched trees, by its pid; its start tells it from a later one of the same pid. */
struct member {
	__u64 start;	/* clock ticks, as /proc/PID/stat shows it */
	__u64 trees;	/* a bit for each */
};

INLINE __u64 start_of(struct task_struct *task)
{
	struct task_struct *leader = READ(task, group_leader);

	return READ(leader, start_boottime) / TICK_NS;
}

INLINE __u32 pid_of(struct task_struct *task)
{
	return READ(task, tgid);
}

INLINE bool is_thread(struct task_struct *task)
{
	return READ(task, pid) != READ(task, tgid);
}

/* At sched_process_exit: whether a process ends, not only one of its threads. */
INLINE bool is_last_thread(struct task_struct *task)
{
	struct signal_struct *signal = READ(task, signal);

	return READ(signal, live.counter) == 0;
}

#endif
