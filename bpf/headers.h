/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * On kernels without BTF (before 5.2, or without CONFIG_DEBUG_INFO_BTF), bcc compiles against the
 * headers of the running kernel. This file hides the differences between kernel versions.
 */
#ifndef HEADERS_H
#define HEADERS_H

#include <linux/cred.h>
#include <linux/cgroup.h>
#include <linux/fdtable.h>
#include <linux/fs.h>
#include <linux/kernfs.h>
#include <linux/netdevice.h>
#include <linux/pid.h>
#include <linux/sched.h>
#include <linux/tcp.h>
#include <linux/version.h>
#include <net/inet_sock.h>
#include <net/net_namespace.h>
#include <net/sock.h>

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

#define FIELD(type, field) offsetof(type, field)

/*
 * offsetof() rejects bit fields, so they are located relative to a neighbouring field: byte offset, size in
 * bytes, shift, width. The shifts assume a little-endian machine.
 */
#define BITS_skc_ipv6only FIELD(struct sock_common, skc_state) + 1, 1, 5, 1

/* bf9765145b85 "sock: Make sk_protocol a 16-bit value", in 5.6 */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(5, 6, 0)
#define BITS_sk_type FIELD(struct sock, sk_type), 2, 0, 16
#define BITS_sk_protocol FIELD(struct sock, sk_protocol), 2, 0, 16
#else
#define BITS_sk_type FIELD(struct sock, __sk_flags_offset) + 2, 2, 0, 16
#define BITS_sk_protocol FIELD(struct sock, __sk_flags_offset) + 1, 1, 0, 8
#endif

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 9, 0)
#define BITS_sk_userlocks FIELD(struct sock, sk_userlocks), 1, 0, 8
#elif LINUX_VERSION_CODE >= KERNEL_VERSION(5, 6, 0)
#define BITS_sk_userlocks FIELD(struct sock, sk_pacing_shift) - 1, 1, 4, 4
#else
#define BITS_sk_userlocks FIELD(struct sock, __sk_flags_offset), 1, 4, 4
#endif

/*
 * 6ae08ae3dea2 "bpf: Add probe_read_{user, kernel} and probe_read_{user, kernel}_str helpers", in 5.5.
 * If bcc does not find these helpers in kallsyms, which is empty without CAP_SYSLOG, it defines macros of
 * the same names that call bpf_probe_read() instead. Remove these macros.
 */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(5, 5, 0)
#undef bpf_probe_read_kernel
#undef bpf_probe_read_user
#endif

#ifdef CONFIG_MPTCP
#define BITS_is_mptcp FIELD(struct tcp_sock, is_mptcp), 1, 0, 8
#else
#define BITS_is_mptcp 0, 1, 0, 0
#endif
/* No header declares struct mptcp_sock, so a change of an MPTCP listener's backlog is not seen. */
#define BITS_first 0, 1, 0, 0

#ifdef CONFIG_MEMCG
#define MEMORY_CONTROLLER memory_cgrp_id
#else
#define MEMORY_CONTROLLER -1
#endif

/* cf25e24db61c "time: Rename tsk->real_start_time to ->start_boottime", in 5.5 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 5, 0)
#define start_boottime real_start_time
#endif

/* 2c4704756cab "pids: Move the pgrp and session pid pointers ...", in 4.19 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(4, 19, 0)
#define thread_pid pids[PIDTYPE_PID].pid
#endif

/* 67c0496e87d1 "kernfs: convert kernfs_node->id from union kernfs_node_id to u64", in 5.5 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(4, 13, 0)
#define KERNFS_ID ino
#elif LINUX_VERSION_CODE < KERNEL_VERSION(5, 5, 0)
#define KERNFS_ID id.id
#endif

#endif
