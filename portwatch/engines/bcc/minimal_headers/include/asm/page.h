/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* bcc includes it, and nothing of it is needed. */
