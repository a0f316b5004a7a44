/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * accf: accept filters for TCP listeners. The interface between user space and
 * the module.
 */
#ifndef _UAPI_ACCF_H
#define _UAPI_ACCF_H

#include <linux/types.h>

/**
 * DOC: Attaching a filter
 *
 * A TCP socket gets a filter by name, before or after listen(), and keeps it
 * until it is closed::
 *
 *	setsockopt(fd, IPPROTO_TCP, TCP_ULP, "dataready", 9);
 *
 * Errors:
 *
 * ENOENT
 *	There is no filter of that name: the module is not loaded.
 * EEXIST
 *	The socket already has a filter or another upper layer protocol (ULP).
 * EOPNOTSUPP
 *	The socket is connected, or carries SMC (even after that fell back to
 *	TCP) or another owner's data (sk_user_data), or is not an IP socket, or
 *	is one that the kernel has made for itself.
 * ENOPROTOOPT
 *	The socket is an MPTCP socket (mptcp_setsockopt() in
 *	net/mptcp/sockopt.c), or another one that is not TCP, such as UDP. Go
 *	programs create MPTCP listeners by default since Go 1.24;
 *	GODEBUG=multipathtcp=0 or sysctl net.mptcp.enabled=0 makes them create
 *	TCP listeners.
 * EINVAL, EFAULT
 *	The name has no byte, or cannot be read.
 * ENOMEM
 *	Memory ran out.
 */

/**
 * DOC: Options of a socket with a filter
 *
 * A socket with a filter understands the level SOL_ACCF:
 *
 * ===========  ===  ===  ==================
 * option       set  get  argument
 * ===========  ===  ===  ==================
 * ACCF_CONFIG  yes  yes  struct accf_config
 * ACCF_STATS   no   yes  struct accf_stats
 * ===========  ===  ===  ==================
 *
 * Later versions may add fields at the end of both structures. setsockopt()
 * takes any length from four bytes to a page: fields beyond that length count
 * as zero, but for accf_config.state, which stays as it is, and bytes beyond the
 * module's structure must be zero. getsockopt() writes as much as there is room
 * for, and returns that length in optlen.
 *
 * Errors:
 *
 * EINVAL
 *	setsockopt(): fewer than four bytes, or a value that is not allowed.
 *	getsockopt(): a negative length.
 * E2BIG
 *	setsockopt(): more than a page, or the structure is newer than the
 *	module, and a field that the module does not know is not zero.
 * ENOPROTOOPT
 *	The socket has no filter (getsockopt() of an IPv4 socket: EOPNOTSUPP),
 *	there is no such option, or it cannot be set.
 * EPERM
 *	max_parked is larger than the module's default, and the caller lacks
 *	CAP_NET_ADMIN in the network namespace.
 * EFAULT
 *	The argument cannot be read or written.
 *
 * Answers of inet_diag (SOCK_DIAG_BY_FAMILY with INET_DIAG_INFO requested)
 * contain the same structures for any listener whose INET_ULP_INFO_NAME is the
 * name of a filter: as the attributes ACCF_ULP_INFO_CONFIG and
 * ACCF_ULP_INFO_STATS inside INET_DIAG_ULP_INFO.
 */

/* The level of getsockopt() and setsockopt(). */
#define SOL_ACCF 0xACCF

/* Options of that level. */
#define ACCF_CONFIG 1
#define ACCF_STATS 2

/**
 * enum accf_on_timeout - What happens to a connection that is silent until its
 *			  deadline, or that is evicted.
 * @ACCF_ON_TIMEOUT_ACCEPT: The server accepts an established, silent
 *			    connection. Nothing is sent.
 * @ACCF_ON_TIMEOUT_RESET: The client gets one RST. The server does not see the
 *			   connection.
 * @ACCF_ON_TIMEOUT_DROP: The connection is dropped. Nothing is sent, until the
 *			  client sends: then it gets an RST.
 */
enum accf_on_timeout {
	ACCF_ON_TIMEOUT_ACCEPT = 0,
	ACCF_ON_TIMEOUT_RESET = 1,
	ACCF_ON_TIMEOUT_DROP = 2,
};

/**
 * enum accf_state - Whether a listener parks connections.
 * @ACCF_STATE_PARKING: It does.
 * @ACCF_STATE_PAUSED: It does not: accept() returns new connections as on a
 *		       listener without a filter. The connections that are
 *		       parked are accepted, as at their deadline with
 *		       ACCF_ON_TIMEOUT_ACCEPT, whatever on_timeout says: the
 *		       oldest first, and as the accept queue has room. New
 *		       connections compete for that room, and deadlines do
 *		       not end a connection during a pause, so at a server
 *		       that is overloaded some stay parked.
 */
enum accf_state {
	ACCF_STATE_PARKING = 0,
	ACCF_STATE_PAUSED = 1,
};

/**
 * enum accf_on_close - What happens to a connection whose client closes its
 *			side without having sent a byte, as health checks do.
 * @ACCF_ON_CLOSE_ACCEPT: The server accepts the connection, and reads the end
 *			  of the stream.
 * @ACCF_ON_CLOSE_RESET: The client's FIN is answered with an RST, and the
 *			 server does not see the connection. A client that has
 *			 closed its socket does not notice, and has no
 *			 connection left. One that has only shut down its
 *			 sending side reads ECONNRESET, not the end of the
 *			 stream.
 */
enum accf_on_close {
	ACCF_ON_CLOSE_ACCEPT = 0,
	ACCF_ON_CLOSE_RESET = 1,
};

/**
 * struct accf_config - The settings of a listener (ACCF_CONFIG).
 * @timeout_ms: How long a silent connection stays parked, in milliseconds from
 *		the client's bare ACK. 0: until the client sends. If the
 *		application sets TCP_DEFER_ACCEPT, the module moves its value
 *		here, as the kernel rounded it up: to 1, 3, 7, 15, 31, 63 …
 *		seconds. TCP_DEFER_ACCEPT itself then reads 0, and setting it
 *		to 0 again changes nothing.
 * @max_parked: How many connections may be parked at once. One more evicts the
 *		oldest of the source that has the most parked, a source being
 *		an IPv4 address or the /64 of an IPv6 address: @on_timeout is
 *		applied to it before its deadline. 0: the module's default,
 *		which getsockopt() then returns.
 * @on_timeout: &enum accf_on_timeout.
 * @state: &enum accf_state. A structure that ends before this field leaves the
 *	   state as it is, so that a program that does not know the field does
 *	   not end a pause.
 * @on_close: &enum accf_on_close. In a pause, connections are accepted.
 *
 * @probe_ms: After how many milliseconds without a sign of a parked client it is
 *	      probed, and how long an answer may take until the next probe: 0 as
 *	      the socket says (SO_KEEPALIVE, with TCP_KEEPIDLE and TCP_KEEPINTVL),
 *	      otherwise whether or not SO_KEEPALIVE is set. A client that does not
 *	      answer to as many probes as TCP_KEEPCNT says is reset. A probe is an
 *	      ACK, as of any connection; times are rounded up to clock ticks, and
 *	      the wait for an answer is no longer than the largest retransmission
 *	      timeout (net.ipv4.tcp_rto_max_ms, two minutes by default).
 *
 * A change takes effect at once, also for connections that are already parked:
 * except for @probe_ms (and the socket's options), by which the time of the next
 * probe is set 0.3 s after a connection is parked, and after each probe.
 */
struct accf_config {
	__u32 timeout_ms;
	__u32 max_parked;
	__u32 on_timeout;
	__u32 state;
	__u32 on_close;
	__u32 probe_ms;
};

/* The number of buckets of accf_stats.wait_log2. */
#define ACCF_WAIT_BUCKETS 32

/* The number of sources in accf_stats.sources. */
#define ACCF_SOURCES 4

/**
 * struct accf_source - A source of clients, and what it has parked.
 * @address: An IPv6 address: of an IPv4 client the IPv4-mapped one
 *	     (::ffff:192.0.2.1), of IPv6 clients the first of their /64. It is
 *	     that of more than half of the oldest 16 connections of the bucket
 *	     (see below). All zero: there is none.
 * @parked: How many of its connections are parked. Sources are counted in 256
 *	    buckets: those of other sources in the same bucket are counted as
 *	    well. 0: this entry says nothing.
 */
struct accf_source {
	__u8 address[16];
	__u64 parked;
};

/**
 * struct accf_stats - The statistics of a listener (ACCF_STATS).
 * @parked: Now: parked connections.
 * @half_open: Now: requests that count against the listener's SYN backlog
 *	       (request_sock_queue.qlen). Of the parked requests, few do: one
 *	       per CPU, and at most an eighth of the backlog. May be negative
 *	       for a moment.
 * @half_open_young: Now: the requests among @half_open whose SYN-ACK has not
 *		     been retransmitted yet (request_sock_queue.young). No
 *		     parked request is among them. May be negative for a moment.
 * @parked_total: Connections that were parked.
 * @released_data: Parked, then accepted because data came.
 * @released_fin: Parked, then accepted because the client closed its side.
 * @timeout_accept: Parked, then accepted at the deadline.
 * @timeout_reset: Parked, then reset at the deadline.
 * @timeout_drop: Parked, then dropped at the deadline.
 * @evicted: Parked, then evicted: accepted, reset or dropped before the
 *	     deadline, since another connection was over the limit (max_parked,
 *	     or the module's max_parked_netns).
 * @aborted: Parked, then ended by TCP: the client's RST, an ICMP error, the
 *	     administrator (ss --kill), or a SYN inside of the window while the
 *	     accept queue was full. Or reset, as the listener was shut down.
 * @fallback: Parked, then fell back to plain TCP: TCP could not make a
 *	      connection at the deadline (no memory, no route, a firewall), the
 *	      listener was closed (its clients are reset, or migrate to
 *	      another listener) or may not park any longer (see
 *	      @bypass_abort_on_overflow and @bypass_signed), or a SYN came
 *	      inside of the window: the connection was made, so that it
 *	      answers the SYN (RFC 5961).
 * @synack_suppressed: SYN-ACKs that were not retransmitted although the SYN-ACK
 *		       timer (req->rsk_timer) of a parked request fired. Almost
 *		       always 0: the listener's timer defers the SYN-ACK timer
 *		       by weeks, 0.3 s after the request was parked. It is not 0
 *		       if the SYN-ACK timer fired before that, on a machine that
 *		       stalled for 0.3 s or more, or if a request stayed parked
 *		       for those weeks. The SYN-ACK timer of such a request may
 *		       then fire every two minutes.
 * @bypass_syncookie: Not parked: the SYN was answered with a syncookie.
 * @bypass_fastopen: Not parked: the SYN carried data or a cookie of TCP Fast
 *		     Open (RFC 7413).
 * @bypass_abort_on_overflow: Not parked: net.ipv4.tcp_abort_on_overflow is set.
 * @bypass_accept_queue_full: Not parked: @parked had reached max_parked, and
 *			      none could be accepted instead, as the accept
 *			      queue was full.
 * @bypass_no_memory: Not parked: memory ran out.
 * @bypass_namespace_limit: Not parked: the network namespace has as many parked
 *			    connections as it may (max_parked_netns), and none
 *			    of this listener's could be accepted instead. None
 *			    is reset or dropped for that.
 * @bypass_signed: Not parked: the listener checks TCP-MD5 or TCP-AO signatures
 *		   (RFC 2385, RFC 5925).
 * @bypass_other: Not parked for any other reason: the listener is closing, its
 *		  filter is still being attached, the request's timer was
 *		  firing, the request was made for another listener, it is
 *		  MPTCP's, or the socket has lost the module's operations.
 * @wait_log2: A histogram of the time from a client's bare ACK to its first
 *	       byte or FIN (@released_data + @released_fin): less than 1 ms in
 *	       bucket 0, and 2^(i-1) ms to less than 2^i ms in bucket i. The
 *	       last bucket has no upper end.
 * @released_paused: Parked, then accepted because parking was paused.
 * @bypass_paused: Not parked: parking is paused.
 * @closed_reset: Parked, then reset because the client closed its side without
 *		  a byte (@on_close of accf_config).
 * @closed_reset_unparked: The same for a connection that was not parked when
 *			   its FIN came: the FIN came before the bare ACK, TCP
 *			   could not make a connection of the ACK, or the
 *			   connection had fallen back. If another segment of
 *			   the client, or its SYN-ACK timer, ended it at the
 *			   same moment, it is counted here as well.
 * @evicted_greediest: How often the connection that was chosen to be evicted
 *		       was not the oldest one, but the oldest one of the source
 *		       that had the most.
 * @sources: Now: the sources that have the most of those parked connections
 *	     that are counted by source; the first one has the most, and those
 *	     with fewer than two are left out. Counting begins when @parked is
 *	     half of max_parked, or when the namespace is full; the oldest are
 *	     counted first, and all are when @parked has reached max_parked. A
 *	     connection is counted until it leaves.
 * @released_late: Of @released_data and @released_fin: those that came when the
 *		   accept queue was full, and were accepted nonetheless. The
 *		   accept queue takes those of clients that were idle, up to
 *		   net.core.somaxconn, whatever the backlog is.
 * @overflow_dropped: Segments with data, or with the client's FIN, that were
 *		      dropped since the accept queue was full: of a client that
 *		      was parked for a moment only, or at net.core.somaxconn. The
 *		      connection stays parked, and the client retransmits them.
 * @probes: Probes that were sent to parked clients (@probe_ms of accf_config).
 * @died: Parked, then reset because the client did not answer to probes; or
 *	  ended because it answered to one by an RST.
 *
 * One consistent snapshot. The fields count connections since the filter was
 * attached, except those described with "Now"::
 *
 *	parked_total = parked + released_data + released_fin + timeout_accept
 *		     + timeout_reset + timeout_drop + evicted + aborted
 *		     + fallback + released_paused + closed_reset + died
 */
struct accf_stats {
	__u64 parked;
	__s64 half_open;
	__s64 half_open_young;

	__u64 parked_total;
	__u64 released_data;
	__u64 released_fin;
	__u64 timeout_accept;
	__u64 timeout_reset;
	__u64 timeout_drop;
	__u64 evicted;
	__u64 aborted;
	__u64 fallback;
	__u64 synack_suppressed;

	__u64 bypass_syncookie;
	__u64 bypass_fastopen;
	__u64 bypass_abort_on_overflow;
	__u64 bypass_accept_queue_full;
	__u64 bypass_no_memory;
	__u64 bypass_namespace_limit;
	__u64 bypass_signed;
	__u64 bypass_other;

	__u64 wait_log2[ACCF_WAIT_BUCKETS];

	__u64 released_paused;
	__u64 bypass_paused;
	__u64 closed_reset;
	__u64 closed_reset_unparked;

	__u64 evicted_greediest;
	struct accf_source sources[ACCF_SOURCES];

	__u64 released_late;
	__u64 overflow_dropped;

	__u64 probes;
	__u64 died;
};

/*
 * Attributes inside INET_DIAG_ULP_INFO. They are not in the kernel's own enum,
 * and far from its end.
 */
#define ACCF_ULP_INFO_CONFIG 0x1AC1
#define ACCF_ULP_INFO_STATS 0x1AC2

#endif /* _UAPI_ACCF_H */
