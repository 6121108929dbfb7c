/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * This folder replaces the kernel's headers on kernels with BTF, which describes the
 * structs that the programs read. It has only what bcc's own headers need. bcc
 * includes this file first.
 */
#define CONFIG_BPF_SYSCALL 1
#define KERNEL_VERSION(major, minor, patch) (((major) << 16) + ((minor) << 8) + ((patch) > 255 ? 255 : (patch)))
#define LINUX_VERSION_CODE KERNEL_VERSION(6, 0, 0)
