// SPDX-License-Identifier: GPL-2.0-only
/*
 * What must be known of a connection request.
 */

#include <net/inet6_hashtables.h>
#include <net/inet_hashtables.h>
#include <net/tcp_ecn.h>

#include "bindings.h"

/*
 * The acked mark is a bit-field, which can be neither read nor written once.
 * It is set by the module under the lock of the parking listener, and by
 * tcp_check_req(). Only a listener that is closed takes it back, for a request
 * that is not parked any more. Of its neighbours tcp_synack_options() writes
 * one, for listeners with a key.
 */
static bool accf_req_is_acked(const struct request_sock *req)
{
	return data_race((bool)inet_rsk(req)->acked);
}

/**
 * accf_req_is_hashed() - Check whether a request is in the table of connections.
 * @req: the request
 *
 * Context: Any.
 */
bool accf_req_is_hashed(struct request_sock *req)
{
	return !hlist_unhashed_lockless(&req_to_sk(req)->sk_node);
}

/*
 * Returns true if a listener has keys for TCP-MD5 (RFC 2385) or TCP-AO (RFC
 * 5925).
 */
static bool accf_is_signed(const struct sock *sk)
{
	bool is_signed = false;

#ifdef CONFIG_TCP_MD5SIG
	is_signed |= rcu_access_pointer(tcp_sk(sk)->md5sig_info) != NULL;
#endif
#ifdef CONFIG_TCP_AO
	is_signed |= rcu_access_pointer(tcp_sk(sk)->ao_info) != NULL;
#endif
	return is_signed;
}

/**
 * accf_req_flags() - Tell what decides whether a request is parked.
 * @sk: the listener that a segment of it has come to
 * @req: the request
 *
 * Context: Any.
 * Return: ACCF_ABORTS_ON_OVERFLOW or ACCF_IS_SIGNED, and ACCF_IS_ACKED.
 */
u32 accf_req_flags(const struct sock *sk, const struct request_sock *req)
{
	u32 flags = accf_req_is_acked(req) ? ACCF_IS_ACKED : 0;

	if (READ_ONCE(sock_net(sk)->ipv4.sysctl_tcp_abort_on_overflow))
		return flags | ACCF_ABORTS_ON_OVERFLOW;
	return flags | (accf_is_signed(sk) ? ACCF_IS_SIGNED : 0);
}

/**
 * accf_req_set_acked() - Mark a request as acked, and check it again.
 * @sk: its listener
 * @req: the request
 *
 * B5: the smp_mb() pairs with that in accf_req_was_acked().
 *
 * Context: Under the lock of the parking listener.
 * Return: ACCF_IS_GONE if the request has left the table or its listener has
 *         stopped, ACCF_IS_SIGNED, or 0.
 */
u32 accf_req_set_acked(const struct sock *sk, struct request_sock *req)
{
	data_race((int)(inet_rsk(req)->acked = 1));
	smp_mb();
	if (!accf_req_is_hashed(req) || inet_sk_state_load(sk) != TCP_LISTEN)
		return ACCF_IS_GONE;
	return accf_is_signed(sk) ? ACCF_IS_SIGNED : 0;
}

/**
 * accf_req_clear_acked() - Take the mark of a request back.
 * @req: the request
 *
 * Context: Any.
 */
void accf_req_clear_acked(struct request_sock *req)
{
	data_race((int)(inet_rsk(req)->acked = 0));
}

/**
 * accf_req_was_acked() - Check whether a request is acked.
 * @req: the request, which the caller has taken out of the table
 *
 * B6: the smp_mb() pairs with that in accf_req_set_acked().
 *
 * Context: Any.
 */
bool accf_req_was_acked(const struct request_sock *req)
{
	smp_mb();
	return accf_req_is_acked(req);
}

/**
 * accf_req_synack_timer() - Tell what reqsk_timer_handler() counts by.
 * @req: the request, with a listener
 *
 * The handler counts before it sets the timer, so this looks in the other
 * order. The handler has no barrier in between. If the count is old
 * nonetheless, the request is taken for a young one until its timer fires
 * again or it leaves; what was taken off the young ones is put back then.
 *
 * Context: Any.
 */
struct accf_synack_timer accf_req_synack_timer(const struct request_sock *req)
{
	const struct sock *sk = req->rsk_listener;
	struct accf_synack_timer timer = {
		.left = data_race(READ_ONCE(req->rsk_timer.expires)) - jiffies,
	};

	if (timer.left < 0 || !timer_pending(&req->rsk_timer))
		timer.left = 0;
	/* B9. Without a partner: the handler writes the two without a barrier. */
	smp_rmb();
	timer.timeouts = data_race((u8)req->num_timeout);
	timer.max_timeouts = READ_ONCE(inet_csk(sk)->icsk_syn_retries) ?:
			     READ_ONCE(sock_net(sk)->ipv4.sysctl_tcp_synack_retries);
	return timer;
}

/**
 * accf_echoed_rtt_us() - Compute a round-trip time as tcp_ack_update_rtt() does.
 * @req: the request
 * @now_us: when the segment came, by tcp_clock_us()
 * @tsecr: the timestamp that it echoes
 *
 * Context: Any.
 * Return: the round-trip time in microseconds.
 */
u32 accf_echoed_rtt_us(const struct request_sock *req, u64 now_us, u32 tsecr)
{
	const struct tcp_request_sock *treq = tcp_rsk(req);
	u32 ticks;
	u64 rtt;

	tsecr -= treq->ts_off;
	if (treq->req_usec_ts) {
		rtt = (u32)now_us - tsecr;
	} else {
		ticks = (u32)div_u64(now_us, USEC_PER_MSEC) - tsecr;
		rtt = (u64)max_t(u32, ticks, 1) * (USEC_PER_SEC / TCP_TS_HZ);
	}
	return min_t(u64, rtt, U32_MAX);
}

/**
 * accf_set_synack_rtt_us() - Have tcp_synack_rtt_meas() take a round-trip time.
 * @req: the request, which the caller has taken out of the table
 * @rtt_us: the round-trip time in microseconds
 * @now_us: the time, by tcp_clock_us()
 *
 * The child has its own copy of what is overwritten here.
 *
 * Context: Any.
 */
void accf_set_synack_rtt_us(struct request_sock *req, u32 rtt_us, u64 now_us)
{
	tcp_rsk(req)->snt_synack = now_us - rtt_us;
	req->num_retrans = 0;
}

static u32 accf_flow_label(struct accf_arrival ack)
{
	return (ack.ip >> ACCF_FLOW_LABEL_SHIFT) & 0xfffff;
}

static u8 accf_hop_limit(struct accf_arrival ack)
{
	return ack.ip >> ACCF_HOP_LIMIT_SHIFT;
}

static u8 accf_dsfield(struct accf_arrival ack)
{
	return ack.ip >> ACCF_DSFIELD_SHIFT;
}

/*
 * Does for @child what tcp_ecn_openreq_child() and tcp_rcv_state_process() do for
 * the third segment of an Accurate ECN handshake: tcp_accecn_third_ack() and
 * tcp_ecn_received_counters(). The order is another one: a later segment has been
 * counted, so what tells of the last one stays.
 */
static noinline void accf_child_set_accecn(struct sock *child, const struct request_sock *req,
					   struct accf_arrival ack, u8 ace)
{
	u8 ecn = accf_dsfield(ack) & INET_ECN_MASK;
	struct tcp_sock *tp = tcp_sk(child);

	switch (ace) {
	case 0x0:
		tcp_accecn_fail_mode_set(tp, TCP_ACCECN_ACE_FAIL_RECV | TCP_ACCECN_OPT_FAIL_RECV);
		break;
	case 0x7:
	case 0x5:
	case 0x1:
		break;
	default:
		if (tcp_accecn_validate_syn_feedback(child, ace, tcp_rsk(req)->syn_ect_snt) &&
		    tcp_accecn_extract_syn_ect(ace) == INET_ECN_CE && !tp->delivered_ce)
			WRITE_ONCE(tp->delivered_ce, 1);
		break;
	}
	if (INET_ECN_is_not_ect(ecn))
		return;
	tp->ecn_flags |= TCP_ECN_SEEN;
	if (INET_ECN_is_ce(ecn)) {
		tp->received_ce++;
		tp->received_ce_pending = min(tp->received_ce_pending + 1, 0xfU);
	}
}

#if IS_ENABLED(CONFIG_IPV6)
/* As ipv6_opt_accepted(), which is not exported. */
static bool accf_opt_accepted(const struct ipv6_pinfo *np, const struct sk_buff *skb,
			      const struct inet6_skb_parm *opt)
{
	return ((opt->flags & IP6SKB_HOPBYHOP) &&
		(np->rxopt.bits.hopopts || np->rxopt.bits.ohopopts)) ||
	       (ip6_flowinfo(ipv6_hdr(skb)) && np->rxopt.bits.rxflow) ||
	       (opt->srcrt && (np->rxopt.bits.srcrt || np->rxopt.bits.osrcrt)) ||
	       ((opt->dst1 || opt->dst0) &&
		(np->rxopt.bits.dstopts || np->rxopt.bits.odstopts));
}

/*
 * As tcp_v6_do_rcv() does for a segment in order: IPV6_2292PKTOPTIONS tells of it.
 * Returns false, and changes nothing, if there is no memory.
 */
static bool accf_child_set_pktoptions(struct sock *child, struct sk_buff *skb)
{
	struct ipv6_pinfo *np = inet6_sk(child);
	struct sk_buff *opt_skb = NULL;

	if (accf_opt_accepted(np, skb, &TCP_SKB_CB(skb)->header.h6)) {
		opt_skb = skb_clone_and_charge_r(skb, child);
		if (!opt_skb)
			return false;
		memmove(IP6CB(opt_skb), &TCP_SKB_CB(opt_skb)->header.h6,
			sizeof(struct inet6_skb_parm));
		opt_skb->dev = NULL;
		skb_dst_drop(opt_skb);
		nf_reset_ct(opt_skb);
	}
	consume_skb(xchg(&np->pktoptions, opt_skb));
	return true;
}

/*
 * For a client that speaks IPv6. tcp_v6_do_rcv() takes what the socket has asked
 * for (rxopt) from a later segment that is in order; the rest stays the ACK's.
 */
static void accf_child_set_ipv6(struct sock *child, struct sk_buff *skb,
				struct accf_arrival ack)
{
	struct ipv6_pinfo *np = inet6_sk(child);
	bool is_updated = np->rxopt.all && TCP_SKB_CB(skb)->seq == tcp_sk(child)->rcv_nxt &&
			  accf_child_set_pktoptions(child, skb);

	if (!is_updated || !(np->rxopt.bits.rxinfo || np->rxopt.bits.rxoinfo))
		WRITE_ONCE(np->mcast_oif, ack.iif);
	if (!is_updated || !(np->rxopt.bits.rxhlim || np->rxopt.bits.rxohlim))
		WRITE_ONCE(np->mcast_hops, accf_hop_limit(ack));
	if (!is_updated || !(np->rxopt.bits.rxflow || np->rxopt.bits.rxtclass))
		np->rcv_flowinfo = ip6_make_flowinfo(accf_dsfield(ack),
						     htonl(accf_flow_label(ack)));
	if (!is_updated && inet6_test_bit(REPFLOW, child))
		np->flow_label = htonl(accf_flow_label(ack));
}
#endif

static __always_inline void accf_child_set_ipv4(struct sock *child, struct accf_arrival ack)
{
	struct inet_sock *inet = inet_sk(child);

	WRITE_ONCE(inet->mc_index, ack.iif);
	WRITE_ONCE(inet->mc_ttl, accf_hop_limit(ack));
	WRITE_ONCE(inet->rcv_tos, accf_dsfield(ack));
}

/* Counts the bytes of @skb by ECN, as tcp_rcv_established() does. */
static noinline void accf_child_count_ecn(struct sock *child, const struct sk_buff *skb)
{
	tcp_ecn_received_counters_payload(child, skb);
}

static __always_inline void accf_child_set_ecn(struct sock *child,
						const struct request_sock *req,
						struct sk_buff *skb, struct accf_arrival ack,
						u8 ace)
{
	if (tcp_rsk(req)->accecn_ok)
		accf_child_set_accecn(child, req, ack, ace);
	/* Nothing is counted, and nothing changes, without ECN. */
	else if ((TCP_SKB_CB(skb)->ip_dsfield & INET_ECN_MASK) || tcp_sk(child)->prev_ecnfield)
		accf_child_count_ecn(child, skb);
}

#if IS_ENABLED(CONFIG_IPV6)
/*
 * For a socket of IPv6, whose client may speak IPv4. Apart from
 * accf_child_set_ack(), which needs no stack so.
 */
static noinline void accf_child_set_ack_ipv6(struct sock *child, const struct request_sock *req,
					     struct sk_buff *skb, struct accf_arrival ack, u8 ace)
{
	if (READ_ONCE(req->rsk_ops)->family == AF_INET) {
		accf_child_set_ipv4(child, ack);
		WRITE_ONCE(inet6_sk(child)->mcast_oif, ack.iif);
		WRITE_ONCE(inet6_sk(child)->mcast_hops, accf_hop_limit(ack));
	} else {
		accf_child_set_ipv6(child, skb, ack);
	}
	accf_child_set_ecn(child, req, skb, ack, ace);
}
#endif

/**
 * accf_child_set_ack() - Have a child take what its client's bare ACK said.
 * @child: the child of a later segment, new and locked
 * @req: its request
 * @skb: the later segment
 * @ack: the bare ACK, from accf_skb_arrival()
 * @ace: its TCP flags AE, CWR and ECE, of which ECE is bit 0
 *
 * On a plain listener the ACK makes the child, and the later segment comes to a
 * connection. That updates what an IPv6 socket has asked to know of its last
 * segment (tcp_v6_do_rcv()), and leaves the rest as the ACK has set it. It also
 * counts the bytes of a segment by IP's bits of ECN (tcp_rcv_established()), which
 * tcp_create_openreq_child() does only where Accurate ECN is in use.
 *
 * Context: Bottom halves off, under the lock of @child.
 */
void accf_child_set_ack(struct sock *child, const struct request_sock *req,
			struct sk_buff *skb, struct accf_arrival ack, u8 ace)
{
	struct tcp_sock *tp = tcp_sk(child);

	WRITE_ONCE(tp->segs_in, tp->segs_in + 1);
#if IS_ENABLED(CONFIG_IPV6)
	if (child->sk_family != AF_INET) {
		accf_child_set_ack_ipv6(child, req, skb, ack, ace);
		return;
	}
#endif
	accf_child_set_ipv4(child, ack);
	accf_child_set_ecn(child, req, skb, ack, ace);
}

/**
 * accf_child_set_waited() - Take the wait of a request off a child's time in recovery.
 * @child: the child, new and locked
 * @waited_ms: how long its request was parked, in milliseconds
 *
 * If the SYN-ACK was sent again, tcp_create_openreq_child() counts from the first
 * one until the child is made.
 *
 * Context: Bottom halves off, under the lock of @child.
 */
void accf_child_set_waited(struct sock *child, u32 waited_ms)
{
	struct tcp_sock *tp = tcp_sk(child);

	if (tp->total_rto)
		tp->total_rto_time -= min(tp->total_rto_time, waited_ms);
}

/**
 * accf_req_endpoints() - Copy the addresses and ports of a request.
 * @req: the request
 * @ends: where they go
 *
 * Context: Any.
 */
void accf_req_endpoints(const struct request_sock *req, struct accf_endpoints *ends)
{
	const struct inet_request_sock *ireq = inet_rsk(req);

	memset(ends, 0, sizeof(*ends));
	ends->family = READ_ONCE(req->rsk_ops)->family;
	ends->client_port = ireq->ir_rmt_port;
	ends->server_port = htons(ireq->ir_num);
	ends->client_v4 = ireq->ir_rmt_addr;
	ends->server_v4 = ireq->ir_loc_addr;
#if IS_ENABLED(CONFIG_IPV6)
	ends->client_v6 = ireq->ir_v6_rmt_addr;
	ends->server_v6 = ireq->ir_v6_loc_addr;
#endif
}

/**
 * accf_req_source() - Tell where the client of a request comes from.
 * @req: the request
 *
 * The addresses do not change once the request can be found.
 *
 * Context: Any.
 * Return: the IPv4 address, or the first 64 bits of the IPv6 address, in host order.
 */
u64 accf_req_source(const struct request_sock *req)
{
	const struct inet_request_sock *ireq = inet_rsk(req);

#if IS_ENABLED(CONFIG_IPV6)
	if (READ_ONCE(req->rsk_ops)->family == AF_INET6)
		return get_unaligned_be64(&ireq->ir_v6_rmt_addr);
#endif
	return ntohl(ireq->ir_rmt_addr);
}

static struct sock *accf_req_lookup_rcu(const struct request_sock *req)
{
	const struct inet_request_sock *ireq = inet_rsk(req);
	struct net *net = read_pnet(&ireq->ireq_net);

	if (READ_ONCE(req->rsk_ops)->family == AF_INET)
		return __inet_lookup_established(net, ireq->ir_rmt_addr, ireq->ir_rmt_port,
						 ireq->ir_loc_addr, ireq->ir_num, ireq->ir_iif,
						 ireq->ir_iif);
#if IS_ENABLED(CONFIG_IPV6)
	return __inet6_lookup_established(net, &ireq->ir_v6_rmt_addr, ireq->ir_rmt_port,
					  &ireq->ir_v6_loc_addr, ireq->ir_num, ireq->ir_iif,
					  ireq->ir_iif);
#else
	return NULL;
#endif
}

/*
 * Returns a socket with the addresses of @req from the table, and a reference.
 * The kernel's look-up wants its caller to be an RCU reader, which the work of a
 * closed listener is not.
 */
static struct sock *accf_req_lookup(const struct request_sock *req)
{
	struct sock *sk;

	rcu_read_lock();
	sk = accf_req_lookup_rcu(req);
	rcu_read_unlock();
	return sk;
}

/**
 * accf_req_is_connected() - Check whether a connection was made of a request.
 * @req: the request
 *
 * A connection in TIME-WAIT counts. Puts a reference, which may be the last
 * one to another request, whose destructor then runs.
 *
 * Context: Any, but not under the lock of a listener.
 */
bool accf_req_is_connected(const struct request_sock *req)
{
	struct sock *sk = accf_req_lookup(req);
	bool is_connected;

	if (!sk)
		return false;
	is_connected = inet_sk_state_load(sk) != TCP_NEW_SYN_RECV;
	sock_gen_put(sk);
	return is_connected;
}

/**
 * accf_req_has_successor() - Check whether the table has another socket in a request's place.
 * @req: the request
 *
 * A connection, a clone of the request, or a new request of the same client.
 * Puts a reference, as accf_req_is_connected() does.
 *
 * Context: Any, but not under the lock of a listener.
 */
bool accf_req_has_successor(const struct request_sock *req)
{
	struct sock *sk = accf_req_lookup(req);
	bool has_successor = sk && sk != req_to_sk((struct request_sock *)req);

	if (sk)
		sock_gen_put(sk);
	return has_successor;
}

/**
 * accf_req_of_skb() - Look up the request that a segment belongs to.
 * @sk: the listener to which TCP has brought the segment
 * @skb: the segment, with TCP's control block
 *
 * As tcp_v4_rcv() and tcp_v6_rcv() have found it before.
 *
 * Context: RCU reader, but not under the lock of a listener: as in
 *          accf_req_is_connected(), a destructor may run.
 * Return: the request with a reference, or NULL if it has left the table.
 */
struct request_sock *accf_req_of_skb(const struct sock *sk, struct sk_buff *skb)
{
	const struct tcphdr *th = tcp_hdr(skb);
	struct net *net = sock_net(sk);
	struct sock *found = NULL;

	if (skb->protocol == htons(ETH_P_IP))
		found = __inet_lookup_established(net, ip_hdr(skb)->saddr, th->source,
						  ip_hdr(skb)->daddr, ntohs(th->dest),
						  inet_iif(skb), tcp_v4_sdif(skb));
#if IS_ENABLED(CONFIG_IPV6)
	else
		found = __inet6_lookup_established(net, &ipv6_hdr(skb)->saddr, th->source,
						   &ipv6_hdr(skb)->daddr, ntohs(th->dest),
						   tcp_v6_iif_l3_slave(skb), tcp_v6_sdif(skb));
#endif
	if (!found)
		return NULL;
	if (inet_sk_state_load(found) == TCP_NEW_SYN_RECV)
		return inet_reqsk(found);
	sock_gen_put(found);
	return NULL;
}
