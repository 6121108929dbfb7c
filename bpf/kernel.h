/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * The constants, contexts and struct fields of the kernel that the programs use.
 *
 * The fields' offsets differ between kernels. For the core engine, libbpf corrects them when it loads the
 * programs. For the bcc engine, portwatch/engines/bcc/layout.py parses the structs between the two pragmas
 * below, and declares them with the offsets in the running kernel's BTF. On a kernel without BTF, bcc uses
 * the declarations in the kernel's own headers instead.
 */
#ifndef KERNEL_H
#define KERNEL_H

#define INLINE static inline __attribute__((always_inline))

#ifndef KERNEL_HEADERS
#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_MPTCP 262
#define TCP_ESTABLISHED 1
#define TCP_CLOSE 7
#define TCP_LISTEN 10
#define SOCK_RAW 3
#define SOCK_BINDPORT_LOCK 8
#define S_IFMT 00170000
#define S_IFSOCK 0140000
#endif

#ifndef NETDEV_HASHENTRIES
#define NETDEV_HASHENTRIES 256
#endif

struct syscall_enter {
	__u64 common;
	__u64 nr;
	__u64 args[3];
};

struct syscall_exit {
	__u64 common;
	__u64 nr;
	__s64 ret;
};

struct sockaddr_any {
	__u16 family;
	__u16 port;
	union {
		struct {
			__u8 address[4];
		} v4;
		struct {
			__u32 flowinfo;
			__u8 address[16];
			__u32 scope_id;
		} v6;
	};
};

#ifdef CORE
enum cgroup_subsys_id { memory_cgrp_id };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct hlist_node {
	struct hlist_node *next;
};

struct hlist_head {
	struct hlist_node *first;
};

struct net_device {
	struct hlist_node index_hlist;
	int ifindex;
	char name[16];
};

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
	struct hlist_head *dev_index_head;
};

typedef struct {
	struct net *net;
} possible_net_t;

typedef struct {
	int counter;
} atomic_t;

typedef struct {
	__s64 counter;
} atomic64_t;

struct in6_addr {
	__u8 bytes[16];
};

struct sock_common {
	__u32 skc_rcv_saddr;
	__u16 skc_num;
	unsigned short skc_family;
	unsigned char skc_state;
	unsigned char skc_ipv6only : 1;
	int skc_bound_dev_if;
	possible_net_t skc_net;
	atomic64_t skc_cookie;
	struct in6_addr skc_v6_rcv_saddr;
};

struct file;

struct inode {
	unsigned short i_mode;
	unsigned long i_ino;
};

struct socket {
	struct file *file;
	struct sock *sk;
};

struct socket_alloc {
	struct socket socket;
	struct inode vfs_inode;
};

struct file {
	struct inode *f_inode;
	void *private_data;
};

struct sock {
	struct sock_common __sk_common;
	struct socket *sk_socket;
	__u16 sk_type;
	__u16 sk_protocol;
	unsigned char sk_userlocks;
	__u32 sk_max_ack_backlog;
};

struct inet_sock {
	__u16 inet_sport;
};

struct tcp_sock {
	unsigned char is_mptcp;
};

struct mptcp_sock {
	struct sock *first;
};

struct upid {
	int nr;
	void *ns;
};

struct pid {
	unsigned int level;
	struct upid numbers[1];
};

typedef struct {
	unsigned int val;
} kuid_t;

struct cred {
	kuid_t uid;
};

struct kernfs_node {
	const char *name;
	__u64 id;
};

struct cgroup_root;

struct cgroup {
	struct kernfs_node *kn;
	struct cgroup_root *root;
};

struct cgroup_subsys_state {
	struct cgroup *cgroup;
};

struct css_set {
	struct cgroup *dfl_cgrp;
	struct cgroup_subsys_state *subsys[1];
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct signal_struct {
	atomic_t live;
};

struct task_struct {
	struct task_struct *group_leader;
	struct signal_struct *signal;
	struct pid *thread_pid;
	int pid;
	int tgid;
	__u64 start_boottime;
	struct cred *cred;
	struct css_set *cgroups;
	struct files_struct *files;
	char comm[16];
};

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
};

#pragma clang attribute pop
#endif

#endif
