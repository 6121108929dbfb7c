/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* bcc ships its own copy of this header. */
#include <bcc/bpf.h>
