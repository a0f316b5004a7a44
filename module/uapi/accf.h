/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * accf: accept filters for TCP listeners. What user space shares with the module.
 *
 * A listener gets a filter by name: setsockopt(fd, IPPROTO_TCP, TCP_ULP, "dataready", 9), before or after listen(). From
 * then on the socket understands the level SOL_ACCF:
 *
 *   option        set   get   argument
 *   ACCF_CONFIG   yes   yes   struct accf_config
 *   ACCF_STATS    no    yes   struct accf_stats
 *
 * Both structures may grow at the end. setsockopt() takes any length from four bytes to a page: fields beyond it count as
 * zero, and bytes beyond what the module knows must be zero (E2BIG). getsockopt() fills in as much as there is room for,
 * and says in *optlen how much that was.
 *
 *   EINVAL        setsockopt(): fewer than four bytes, or a value that this page does not allow
 *   E2BIG         setsockopt(): a newer structure than the module's, with something in it that the module does not know
 *   ENOPROTOOPT   the socket has no filter (getsockopt() of an IPv4 socket: EOPNOTSUPP); no such option; it cannot be set
 *   EPERM         max_parked is larger than the module's default, and the caller lacks CAP_NET_ADMIN in the network namespace
 *   EFAULT        the argument cannot be read or written
 *
 * The same structures stand in answers of inet_diag (SOCK_DIAG_BY_FAMILY with INET_DIAG_INFO asked for), as attributes
 * ACCF_ULP_INFO_CONFIG and ACCF_ULP_INFO_STATS inside INET_DIAG_ULP_INFO, of any listener whose INET_ULP_INFO_NAME is a
 * filter's.
 */
#ifndef _UAPI_ACCF_H
#define _UAPI_ACCF_H

#include <linux/types.h>

/* The level of getsockopt() and setsockopt(). */
#define SOL_ACCF 0xACCF

/* Options of that level. */
#define ACCF_CONFIG 1
#define ACCF_STATS 2

/* What becomes of a client that is silent until its deadline, or that makes room for another one. */
enum accf_on_timeout {
	/* The server accepts an established, silent connection. Nothing is sent. */
	ACCF_ON_TIMEOUT_ACCEPT = 0,
	/* The client gets one RST; the server never hears of it. */
	ACCF_ON_TIMEOUT_RESET = 1,
	/* The connection is forgotten. Nothing is sent; what the client sends later is answered by an RST. */
	ACCF_ON_TIMEOUT_DROP = 2,
};

/* ACCF_CONFIG: takes effect at once, also for the connections that are parked. */
struct accf_config {
	/*
	 * How long a silent connection is held back, in milliseconds from the client's bare ACK. 0: until it sends. A value
	 * of TCP_DEFER_ACCEPT that the application sets is taken over here, as the kernel has rounded it up: to 1, 3, 7, 15,
	 * 31, 63 … seconds; TCP_DEFER_ACCEPT itself then reads 0.
	 */
	__u32 timeout_ms;
	/*
	 * How many connections may be parked at once; one more, and the oldest meets its deadline. 0: the module's default,
	 * which getsockopt() then tells.
	 */
	__u32 max_parked;
	/* enum accf_on_timeout. */
	__u32 on_timeout;
};

/* Buckets of accf_stats.wait_log2. */
#define ACCF_WAIT_BUCKETS 32

/*
 * ACCF_STATS: one consistent picture. Counts are of connections since the filter was attached, except where it says "now".
 *
 * parked_total = parked + released_data + released_fin + timeout_accept + timeout_reset + timeout_drop + evicted + aborted
 *                + fallback
 */
struct accf_stats {
	/* Now: parked connections. */
	__u64 parked;
	/*
	 * Now: requests that count against the listener's SYN backlog (request_sock_queue.qlen). Parked ones do not, but for a
	 * few: one per CPU, and an eighth of the backlog at most. Negative for a moment at most.
	 */
	__s64 half_open;
	/*
	 * Now: those of them whose SYN-ACK has not been sent again yet (request_sock_queue.young); no parked one is among them.
	 * Negative for a moment at most.
	 */
	__s64 half_open_young;

	/* Connections that were ever parked. */
	__u64 parked_total;
	/* … and then accepted because data came, */
	__u64 released_data;
	/* … because the client closed its side, */
	__u64 released_fin;
	/* … at the deadline; */
	__u64 timeout_accept;
	/* … reset at the deadline; */
	__u64 timeout_reset;
	/* … dropped at the deadline; */
	__u64 timeout_drop;
	/* … accepted, reset or dropped before the deadline, to make room for another one (max_parked); */
	__u64 evicted;
	/*
	 * … ended by the kernel: the client's RST, a SYN in the window, an ICMP error, the administrator (ss --kill), or as the
	 * listener was shut down;
	 */
	__u64 aborted;
	/*
	 * … given back to the kernel, which could not make a connection at the deadline (no memory, no route, a firewall), or
	 * since the listener must not hold anybody back any more (see bypass_abort_on_overflow, bypass_signed).
	 */
	__u64 fallback;
	/* SYN-ACKs that a parked connection's own timer asked for, and that were not sent. */
	__u64 synack_suppressed;

	/* Connections that could not be parked, and went on as on a plain listener, because: */
	/* the SYN was answered with a syncookie; */
	__u64 bypass_syncookie;
	/* the SYN carried data or a cookie of TCP Fast Open (RFC 7413); */
	__u64 bypass_fastopen;
	/* net.ipv4.tcp_abort_on_overflow is set; */
	__u64 bypass_abort_on_overflow;
	/* max_parked was reached, and the oldest could not be accepted as the accept queue was full; */
	__u64 bypass_accept_queue_full;
	/* there was no memory; */
	__u64 bypass_no_memory;
	/*
	 * the network namespace has as many as it may (max_parked_netns), and none of this listener's could be accepted to make
	 * room: nobody is reset or dropped for that;
	 */
	__u64 bypass_namespace_limit;
	/* the listener checks TCP-MD5 or TCP-AO signatures (RFC 2385, RFC 5925); */
	__u64 bypass_signed;
	/* anything else: the listener is closing, its request's timer was just firing. */
	__u64 bypass_other;

	/*
	 * How long clients took from their bare ACK to their first byte or FIN (released_data + released_fin): less than 1 ms in
	 * bucket 0, and 2^(i-1) ms to less than 2^i ms in bucket i. The last one has no upper end.
	 */
	__u64 wait_log2[ACCF_WAIT_BUCKETS];
};

/* Attributes inside INET_DIAG_ULP_INFO. Not in the kernel's own enum, and far from its end. */
#define ACCF_ULP_INFO_CONFIG 0x1AC1
#define ACCF_ULP_INFO_STATS 0x1AC2

#endif /* _UAPI_ACCF_H */
