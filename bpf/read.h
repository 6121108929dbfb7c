/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Macros that read a field of a kernel struct. One of three macros is defined, and says where the field's
 * offset comes from:
 *
 * - CORE: libbpf corrects the offset when it loads the programs.
 * - LAYOUT: bcc compiles against structs that were generated from the kernel's BTF.
 * - KERNEL_HEADERS: bcc compiles against the headers of the running kernel.
 */
#ifndef READ_H
#define READ_H

#define READ_INTO(dst, ptr, field) \
	bpf_probe_read_kernel((dst), sizeof((ptr)->field), &(ptr)->field)

#define READ(ptr, field)                        \
	({                                      \
		typeof((ptr)->field) value;     \
		READ_INTO(&value, ptr, field);  \
		value;                          \
	})

#ifndef KERNFS_ID
#define KERNFS_ID id	/* headers.h defines it for older kernels, which use other names */
#endif

/*
 * READ_BITS reads a field that may be a bit field: skc_ipv6only is one on all kernels, sk_userlocks before
 * 6.9, sk_type and sk_protocol before 5.6, and is_mptcp on some kernels. HAS_FIELD is true if the running
 * kernel has the field.
 */
#ifdef CORE

/* The values of libbpf's enum bpf_field_info_kind. */
enum field_info {
	FIELD_BYTE_OFFSET = 0,
	FIELD_BYTE_SIZE = 1,
	FIELD_EXISTS = 2,
	FIELD_LSHIFT_U64 = 4,
	FIELD_RSHIFT_U64 = 5,
};

#define READ_BITS(ptr, field)                                                                                \
	({                                                                                                   \
		__u64 value = 0;                                                                             \
		bpf_probe_read_kernel(&value, __builtin_preserve_field_info((ptr)->field, FIELD_BYTE_SIZE),  \
				      (const char *)(ptr) +                                                  \
					      __builtin_preserve_field_info((ptr)->field, FIELD_BYTE_OFFSET)); \
		value <<= __builtin_preserve_field_info((ptr)->field, FIELD_LSHIFT_U64);                     \
		value >>= __builtin_preserve_field_info((ptr)->field, FIELD_RSHIFT_U64);                     \
		value;                                                                                       \
	})

#define HAS_FIELD(ptr, field) __builtin_preserve_field_info((ptr)->field, FIELD_EXISTS)
#define OFFSET_OF(type, field) __builtin_preserve_field_info(((type *)0)->field, FIELD_BYTE_OFFSET)
#define SIZE_OF(type) __builtin_preserve_type_info(*(type *)0, 1)

/* Returns the index of the memory controller in css_set.subsys, or -1 if the kernel has no such controller. */
INLINE int memory_controller(void)
{
	if (!__builtin_preserve_enum_value(*(enum cgroup_subsys_id *)memory_cgrp_id, 0))
		return -1;
	return __builtin_preserve_enum_value(*(enum cgroup_subsys_id *)memory_cgrp_id, 1);
}

#else

/*
 * BITS_<field> stands for four numbers: byte offset, size in bytes, shift, width. A width of 0 means that the
 * kernel does not have the field.
 */
#define READ_BITS(ptr, field) read_bits(ptr, BITS_##field)
#define HAS_FIELD(ptr, field) has_bits(BITS_##field)
#define OFFSET_OF(type, field) __builtin_offsetof(type, field)
#define SIZE_OF(type) sizeof(type)

INLINE int memory_controller(void)
{
	return MEMORY_CONTROLLER;
}

INLINE __u64 read_bits(const void *ptr, __u32 offset, __u32 bytes, __u32 shift, __u32 width)
{
	__u64 value = 0;

	bpf_probe_read_kernel(&value, bytes, (const char *)ptr + offset);
	return value << (64 - shift - width) >> (64 - width);
}

INLINE bool has_bits(__u32 offset, __u32 bytes, __u32 shift, __u32 width)
{
	return width;
}

#endif

#endif
