/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * What bcc's own headers need of a kernel's: this folder stands in for kernel
 * headers where the kernel's BTF tells what the programs read. bcc includes this
 * file before anything else.
 */
#define CONFIG_BPF_SYSCALL 1
#define KERNEL_VERSION(major, minor, patch) (((major) << 16) + ((minor) << 8) + ((patch) > 255 ? 255 : (patch)))
#define LINUX_VERSION_CODE KERNEL_VERSION(6, 0, 0)
