// SPDX-License-Identifier: GPL-2.0-only
/*
 * C helpers: the macros and inline functions of the kernel that bindgen cannot see, and the flow and skb fields that
 * differ from kernel to kernel. No decisions are taken here.
 */

#include <linux/capability.h>
#include <linux/netlink.h>
#include <net/inet6_hashtables.h>
#include <net/inet_hashtables.h>
#include <net/ip6_route.h>
#include <net/netns/generic.h>
#include <net/protocol.h>
#include <net/route.h>
#include <net/sock_reuseport.h>

#include "bindings.h"

/* As listener.rs and segment.rs read them. */
static_assert(sizeof_field(struct sock, sk_max_ack_backlog) == sizeof(u32));
static_assert(sizeof_field(struct sk_buff, transport_header) == sizeof(u16));

/* Softirqs do not run on this CPU: it serves one, or somebody has turned them off. */
bool accf_bh_is_off(void)
{
	return softirq_count();
}

void accf_local_bh_disable(void)
{
	local_bh_disable();
}

void accf_local_bh_enable(void)
{
	local_bh_enable();
}

void accf_synchronize_rcu_tasks(void)
{
	synchronize_rcu_tasks();
}

/* For good, and so but once: the count of references is one that could overflow. Who returns knows that it is kept. */
void accf_pin_module(void)
{
	static atomic_t is_pinned = ATOMIC_INIT(0);

	if (atomic_read_acquire(&is_pinned))
		return;
	__module_get(THIS_MODULE);
	if (atomic_xchg(&is_pinned, 1))
		module_put(THIS_MODULE);
}

/* What a network namespace keeps for us. */
struct accf_net {
	/* ParkedRequest requests of all its listeners. */
	atomic_t parked;
};

static unsigned int accf_net_id __read_mostly;

static struct pernet_operations accf_net_ops = {
	.id = &accf_net_id,
	.size = sizeof(struct accf_net),
};

int accf_netns_register(void)
{
	return register_pernet_subsys(&accf_net_ops);
}

void accf_netns_unregister(void)
{
	unregister_pernet_subsys(&accf_net_ops);
}

/* What the namespace of @sk keeps. It is there for as long as the namespace is, and the module. */
struct accf_net *accf_netns(const struct sock *sk)
{
	return net_generic(sock_net(sk), accf_net_id);
}

/* Counts one more parked request. Are that more than @limit, which is 0 for none? */
bool accf_netns_charge(struct accf_net *net, u32 limit)
{
	u32 parked = atomic_inc_return(&net->parked);

	return limit && parked > limit;
}

void accf_netns_uncharge(struct accf_net *net)
{
	atomic_dec(&net->parked);
}

/* The same for one of @sk that was parked, and counts among the young ones again if @young is 1. */
void accf_uncharge(struct accf_net *net, struct sock *sk, int young)
{
	atomic_dec(&net->parked);
	if (young)
		atomic_inc(&inet_csk(sk)->icsk_accept_queue.young);
}

int accf_copy_struct_from_sockptr(void *to, size_t to_size, sockptr_t from, size_t from_size)
{
	return copy_struct_from_sockptr(to, to_size, from, from_size);
}

/* May the caller have a listener of this namespace keep more requests than others do? */
bool accf_may_set_max_parked(const struct sock *sk)
{
	return ns_capable(sock_net(sk)->user_ns, CAP_NET_ADMIN);
}

size_t accf_page_size(void)
{
	return PAGE_SIZE;
}

/*
 * May @len bytes be tried to be added to an answer of inet_diag? In a dump, always: what does not fit goes into the next
 * message. For a single socket, tcp_diag_dump_one() has made the message as large as it was told before, and warns if
 * that was not enough; but the listener may have got its filter since.
 */
bool accf_diag_has_room(const struct sk_buff *skb, size_t len)
{
	return (nlmsg_hdr(skb)->nlmsg_flags & NLM_F_MULTI) || skb_tailroom(skb) >= len;
}

size_t accf_nla_total_size(size_t payload)
{
	return nla_total_size(payload);
}

u8 accf_sk_state(const struct sock *sk)
{
	return inet_sk_state_load(sk);
}

/* Has it listened, be it before? inet_hash() sets this, and only copies lose it. */
bool accf_has_listened(const struct sock *sk)
{
	return sock_flag(sk, SOCK_RCU_FREE);
}

bool accf_sk_acceptq_is_full(const struct sock *sk)
{
	return sk_acceptq_is_full(sk);
}

/*
 * Does the socket carry more than TCP (RFC 8684, RFC 7609), or somebody else's data? Whose it is may change the operations,
 * too, or copy them, as SMC does even after it has fallen back to TCP.
 */
bool accf_carries_more_than_tcp(const struct sock *sk)
{
	bool does = sk_is_mptcp(sk) || rcu_access_pointer(sk->sk_user_data);

#if IS_ENABLED(CONFIG_SMC)
	does |= tcp_sk(sk)->syn_smc;
#endif
	return does;
}

/* Does the listener check signatures (RFC 2385, RFC 5925)? */
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

u32 accf_exemption_flags(const struct sock *sk)
{
	if (READ_ONCE(sock_net(sk)->ipv4.sysctl_tcp_abort_on_overflow))
		return ACCF_ABORTS_ON_OVERFLOW;
	return accf_is_signed(sk) ? ACCF_IS_SIGNED : 0;
}

/*
 * The mark is a bit-field, which can be neither read nor written once. It only ever becomes set, by us under the lock of the
 * request's home, and by tcp_check_req(). Of its neighbours tcp_synack_options() writes one, for listeners with a key.
 */
static bool accf_req_is_acked(const struct request_sock *req)
{
	return data_race((bool)inet_rsk(req)->acked);
}

u32 accf_req_flags(const struct sock *sk, const struct request_sock *req)
{
	return accf_exemption_flags(sk) | (accf_req_is_acked(req) ? ACCF_IS_ACKED : 0);
}

u32 accf_num_online_cpus(void)
{
	return num_online_cpus();
}

int accf_qlen(const struct sock *sk)
{
	return inet_csk_reqsk_queue_len(sk);
}

void accf_qlen_add(struct sock *sk, int n)
{
	atomic_add(n, &inet_csk(sk)->icsk_accept_queue.qlen);
}

int accf_young(const struct sock *sk)
{
	return reqsk_queue_len_young(&inet_csk(sk)->icsk_accept_queue);
}

void accf_young_add(struct sock *sk, int n)
{
	atomic_add(n, &inet_csk(sk)->icsk_accept_queue.young);
}

/* TCP_DEFER_ACCEPT of the listener, as the number of retransmissions that the kernel keeps. It is 0 from now on. */
u8 accf_take_defer_accept(struct sock *sk)
{
	u8 *defer = &inet_csk(sk)->icsk_accept_queue.rskq_defer_accept;

	return xchg(defer, 0);
}

void accf_ulp_data_publish(struct sock *sk, void *data)
{
	rcu_assign_pointer(inet_csk(sk)->icsk_ulp_data, data);
}

/* In an RCU read-side section, or with bottom halves off, which is one. */
void *accf_ulp_data_rcu(const struct sock *sk)
{
	return rcu_dereference_check(inet_csk(sk)->icsk_ulp_data, rcu_read_lock_bh_held());
}

bool accf_req_get(struct request_sock *req)
{
	return refcount_inc_not_zero(&req->rsk_refcnt);
}

bool accf_req_is_hashed(struct request_sock *req)
{
	return !hlist_unhashed_lockless(&req_to_sk(req)->sk_node);
}

/* Marks the request as acked, and then looks at it and its listener, with a full barrier in between. */
u32 accf_req_set_acked(const struct sock *sk, struct request_sock *req)
{
	data_race((int)(inet_rsk(req)->acked = 1));
	smp_mb();
	if (!accf_req_is_hashed(req) || inet_sk_state_load(sk) != TCP_LISTEN)
		return ACCF_IS_GONE;
	return accf_is_signed(sk) ? ACCF_IS_SIGNED : 0;
}

/* Looks after whatever the caller has done before, with a full barrier in between. */
bool accf_req_was_acked(const struct request_sock *req)
{
	smp_mb();
	return accf_req_is_acked(req);
}

bool accf_timer_pending(const struct timer_list *timer)
{
	return timer_pending(timer);
}

/*
 * What reqsk_timer_handler() counts by. It counts before it sets the timer, so this looks in the other order. It has no barrier
 * in between: should the count be old nonetheless, the request is taken for a young one until its timer fires again, or it
 * leaves, and what was taken off the young ones is put back then.
 */
struct accf_synack_timer accf_req_synack_timer(const struct request_sock *req)
{
	const struct sock *sk = req->rsk_listener;
	struct accf_synack_timer own = {
		.left = data_race(READ_ONCE(req->rsk_timer.expires)) - jiffies,
	};

	if (own.left < 0 || !timer_pending(&req->rsk_timer))
		own.left = 0;
	smp_rmb();
	own.timeouts = data_race((u8)req->num_timeout);
	own.max_timeouts = READ_ONCE(inet_csk(sk)->icsk_syn_retries) ?:
			   READ_ONCE(sock_net(sk)->ipv4.sysctl_tcp_synack_retries);
	return own;
}

unsigned long accf_jiffies(void)
{
	return jiffies;
}

u32 accf_rto_max(void)
{
	return TCP_RTO_MAX;
}

/* The round-trip time of a segment that comes at @now_us (tcp_clock_us()) and echoes @tsecr, as in tcp_ack_update_rtt(). */
u32 accf_echoed_rtt_us(const struct request_sock *req, u64 now_us, u32 tsecr)
{
	const struct tcp_request_sock *treq = tcp_rsk(req);
	u64 rtt;

	tsecr -= treq->ts_off;
	if (treq->req_usec_ts)
		rtt = (u32)now_us - tsecr;
	else
		rtt = (u64)max_t(u32, (u32)div_u64(now_us, USEC_PER_MSEC) - tsecr, 1) * (USEC_PER_SEC / TCP_TS_HZ);
	return min_t(u64, rtt, U32_MAX);
}

/* Makes tcp_synack_rtt_meas() take @rtt_us at @now_us. The child has its copy of what is overwritten here. */
void accf_set_synack_rtt_us(struct request_sock *req, u32 rtt_us, u64 now_us)
{
	tcp_rsk(req)->snt_synack = now_us - rtt_us;
	req->num_retrans = 0;
}

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

/* Would its requests go to another listener of its group, should it stop? Under RCU. */
static bool accf_migrates(const struct sock *sk, const struct sock_reuseport *group)
{
	return READ_ONCE(sock_net(sk)->ipv4.sysctl_tcp_migrate_req) || rcu_access_pointer(group->prog);
}

/* Has its group a listener now that would take it, as its own has stopped (reuseport_migrate_sock())? */
bool accf_req_can_migrate(const struct request_sock *req)
{
	const struct sock *sk = req->rsk_listener;
	const struct sock_reuseport *group;
	bool can_migrate;

	rcu_read_lock();
	group = rcu_dereference(sk->sk_reuseport_cb);
	/* Written plainly, under a lock that is not exported. */
	can_migrate = group && data_race(READ_ONCE(group->num_socks)) && accf_migrates(sk, group);
	rcu_read_unlock();
	return can_migrate;
}

/*
 * What has its listener done since its next sequence number was @write_seq? Nothing moves that of a listener but
 * tcp_disconnect(), which is shutdown() among others, and by the same each time; it sets rcv_mss right after that.
 * inet_csk_listen_start() clears rcv_mss, and releases all of that with TCP_LISTEN. (Whoever looks between the two writes takes
 * a listener that was shut down for one that has listened again.)
 *
 * tcp_abort() alone moves nothing, and leaves sk_shutdown set; but that is so, too, for the moment before close() stops the
 * listener, and if shutdown() was called before listen(). That it has listened again after tcp_abort() is not told.
 */
u32 accf_req_listener_since(const struct request_sock *req, u32 write_seq)
{
	const struct sock *sk = req->rsk_listener;
	const struct sock_reuseport *group;
	bool listened = inet_sk_state_load(sk) == TCP_LISTEN;
	u32 moved = READ_ONCE(tcp_sk(sk)->write_seq) - write_seq;
	bool listens, has_ended;
	u32 since = 0;

	/* What has come since it was moved, or was not yet. */
	smp_rmb();
	listens = inet_sk_state_load(sk) == TCP_LISTEN;
	has_ended = READ_ONCE(sk->sk_shutdown);
	if (!listened || !listens || moved)
		since |= ACCF_HAS_STOPPED;
	if (!listened && listens)
		since |= ACCF_LISTENED_AGAIN;
	if (moved) {
		smp_rmb();
		if (listens || moved != READ_ONCE(tcp_sk(sk)->max_window) + 2 ||
		    !data_race(READ_ONCE(inet_csk(sk)->icsk_ack.rcv_mss)))
			since |= ACCF_LISTENED_AGAIN;
	} else if (!since && has_ended) {
		rcu_read_lock();
		group = rcu_dereference(sk->sk_reuseport_cb);
		if (group && accf_migrates(sk, group))
			since |= ACCF_HAS_STOPPED;
		rcu_read_unlock();
	}
	return since;
}

static bool accf_may_hold_clones(const struct sock *member)
{
	return !data_race(sock_flag(member, SOCK_DEAD)) ||
	       READ_ONCE(inet_csk(member)->icsk_accept_queue.rskq_defer_accept);
}

/*
 * Once @sk has stopped, the kernel makes connections of its requests at any other listener of its group, and puts copies into
 * that one's accept queue (inet_csk_complete_hashdance()). Who is there that would take them, and does it keep the module until
 * they are gone? @peer_restores_clones tells whether a listener does. One that was closed has none in its queue: it is orphaned after that
 * has been emptied, and when nobody is in accept() (__tcp_close()). With TCP_DEFER_ACCEPT, one that a request's timer has copied
 * may be half open there, though.
 *
 * Who stops while it may migrate stays in the group until it is freed, or listens again, or is given a program of its own
 * (reuseport_stop_listen_sock(), reuseport_resurrect()).
 *
 * The group's lock is not exported. Members move towards the beginning of those that listen, and towards the end of those that
 * have stopped, and from the ones to the others (__reuseport_detach_sock() and the like). Who goes the other way misses nobody
 * but who moves from the ones to the others meanwhile; where the numbers have changed, the answer is that there may be somebody.
 * (They are the same, too, if one member stops and another one listens again at that very moment.) That holds where the
 * processor and the compiler leave the kernel's writes in order, as a member's place is written before it is counted, and
 * nothing orders the two; elsewhere nobody is looked at, and whoever is there may be somebody.
 *
 * Of all this the kernel marks but the writes of num_closed_socks.
 */
u32 accf_reuseport_peers(const struct sock *sk, bool (*peer_restores_clones)(const struct sock *sk))
{
	const struct sock_reuseport *group;
	u16 listening, stopped;
	int attempts = 3;
	u32 around = 0;

	rcu_read_lock();
	/* The request's leaving, and then the group. */
	smp_rmb();
	group = rcu_dereference(sk->sk_reuseport_cb);
	if (!group)
		goto out;
	do {
		const struct sock *member;
		int i;

		around = ACCF_IN_GROUP;
		listening = data_race(READ_ONCE(group->num_socks));
		stopped = READ_ONCE(group->num_closed_socks);
		if (!IS_ENABLED(CONFIG_X86)) {
			if (listening + stopped > 1 || (listening && data_race(READ_ONCE(group->socks[0])) != sk))
				around |= ACCF_MAY_HOLD_CLONES;
			goto out;
		}
		/* As in reuseport_select_sock(): pairs with __reuseport_add_sock(). */
		smp_rmb();
		for (i = listening - 1; i >= 0; i--) {
			member = data_race(READ_ONCE(group->socks[i]));
			if (member == sk) {
				/* It was moved here, to another group, without listening (reuseport_attach_prog()). */
				if (inet_sk_state_load(sk) != TCP_LISTEN)
					around |= ACCF_MAY_HOLD_CLONES;
				continue;
			}
			if (!member)
				around |= ACCF_MAY_HOLD_CLONES;
			else if (peer_restores_clones(member))
				around |= ACCF_RESTORES_CLONES;
			else if (accf_may_hold_clones(member))
				around |= ACCF_MAY_HOLD_CLONES;
		}
		smp_rmb();
		/* Anew: who has stopped since is among them. */
		i = group->max_socks - READ_ONCE(group->num_closed_socks);
		smp_rmb();
		for (; i < group->max_socks; i++) {
			member = data_race(READ_ONCE(group->socks[i]));
			if (member == sk)
				continue;
			if (!member || (!peer_restores_clones(member) && accf_may_hold_clones(member)))
				around |= ACCF_MAY_HOLD_CLONES;
		}
		smp_rmb();
		if (listening == data_race(READ_ONCE(group->num_socks)) &&
		    stopped == READ_ONCE(group->num_closed_socks))
			goto out;
	} while (--attempts);
	around |= ACCF_MAY_HOLD_CLONES;
out:
	rcu_read_unlock();
	return around;
}

bool accf_is_in_group(const struct sock *sk)
{
	return rcu_access_pointer(sk->sk_reuseport_cb);
}

/* Is it to share its port, and in no group, as it has left it? */
bool accf_has_left_group(const struct sock *sk)
{
	return data_race((bool)sk->sk_reuseport) && !accf_is_in_group(sk);
}

/* Does the request's connection exist: is a socket with its addresses in the table, be it in TIME-WAIT? */
bool accf_req_is_connected(const struct request_sock *req)
{
	const struct inet_request_sock *ireq = inet_rsk(req);
	struct net *net = read_pnet(&ireq->ireq_net);
	bool is_connected;
	struct sock *sk;

	if (READ_ONCE(req->rsk_ops)->family == AF_INET)
		sk = __inet_lookup_established(net, ireq->ir_rmt_addr, ireq->ir_rmt_port, ireq->ir_loc_addr,
					       ireq->ir_num, ireq->ir_iif, ireq->ir_iif);
	else
#if IS_ENABLED(CONFIG_IPV6)
		sk = __inet6_lookup_established(net, &ireq->ir_v6_rmt_addr, ireq->ir_rmt_port,
						&ireq->ir_v6_loc_addr, ireq->ir_num, ireq->ir_iif, ireq->ir_iif);
#else
		sk = NULL;
#endif
	if (!sk)
		return false;
	is_connected = inet_sk_state_load(sk) != TCP_NEW_SYN_RECV;
	sock_gen_put(sk);
	return is_connected;
}

/* As tcp_make_synack() does: what the client may echo. */
void accf_req_note_tsval_sent(struct request_sock *req)
{
	WRITE_ONCE(tcp_rsk(req)->snt_tsval_last, tcp_rsk_tsval(tcp_rsk(req)));
}

/*
 * A packet as ip_local_deliver_finish() or ip6_input_finish() would hand it to TCP. It claims to have come in by the
 * device that the request is bound to, and by loopback where it is not bound.
 */
struct sk_buff *accf_skb_received(const struct request_sock *req, const void *packet, u32 len, u32 network_len)
{
	const struct inet_request_sock *ireq = inet_rsk(req);
	struct net *net = read_pnet(&ireq->ireq_net);
	struct sk_buff *skb = alloc_skb(len, GFP_ATOMIC | __GFP_NOWARN);

	if (!skb)
		return NULL;
	skb_put_data(skb, packet, len);
	skb_reset_mac_header(skb);
	skb_reset_network_header(skb);
	skb_set_transport_header(skb, network_len);
	__skb_pull(skb, network_len);
	skb->pkt_type = PACKET_HOST;
	skb->ip_summed = CHECKSUM_UNNECESSARY;
	skb->dev = net->loopback_dev;
	skb->skb_iif = ireq->ir_iif ?: net->loopback_dev->ifindex;
	skb->mark = ireq->ir_mark;
	if (READ_ONCE(req->rsk_ops)->family == AF_INET) {
		skb->protocol = htons(ETH_P_IP);
		IPCB(skb)->iif = skb->skb_iif;
	} else {
		skb->protocol = htons(ETH_P_IPV6);
		IP6CB(skb)->iif = skb->skb_iif;
		IP6CB(skb)->nhoff = offsetof(struct ipv6hdr, nexthdr);
	}
	return skb;
}

/*
 * Gives the packet a route: TCP looks at it, for instance when the request is gone and a reset is due, and the child
 * keeps it until the client's next packet. An input route would be refused for loopback. IPv4 gets one that says "for us"
 * and nothing else: unlike what a look-up finds, it says nothing of the device (VRFs), and suits addresses that are not
 * the machine's own (IP_TRANSPARENT). IPv6 gets the output route to the listener's address, if that is local.
 */
bool accf_skb_route(const struct request_sock *req, struct sk_buff *skb)
{
	const struct inet_request_sock *ireq = inet_rsk(req);
	struct net *net = read_pnet(&ireq->ireq_net);

	if (READ_ONCE(req->rsk_ops)->family == AF_INET) {
		struct rtable *rt = rt_dst_alloc(net->loopback_dev, RTCF_LOCAL, RTN_LOCAL, false);

		if (!rt)
			return false;
		skb_dst_set(skb, &rt->dst);
		return true;
	}
#if IS_ENABLED(CONFIG_IPV6)
	{
		struct flowi6 fl6 = {
			.flowi6_oif = ireq->ir_iif,
			.flowi6_mark = ireq->ir_mark,
			.flowi6_proto = IPPROTO_TCP,
			.daddr = ireq->ir_v6_loc_addr,
			.fl6_sport = ireq->ir_rmt_port,
			.fl6_dport = htons(ireq->ir_num),
		};
		struct dst_entry *dst = ip6_route_output(net, NULL, &fl6);

		if (!dst->error && (dst_rt6_info(dst)->rt6i_flags & RTF_LOCAL)) {
			skb_dst_set(skb, dst);
			return true;
		}
		dst_release(dst);
	}
#endif
	return false;
}

/* As tcp_v4_fill_cb() and tcp_v6_fill_cb(), as far as sending a reset takes: where it came in, and no options. */
void accf_skb_fill_cb(const struct request_sock *req, struct sk_buff *skb)
{
	const struct tcphdr *th = tcp_hdr(skb);

	memset(TCP_SKB_CB(skb), 0, sizeof(*TCP_SKB_CB(skb)));
	if (READ_ONCE(req->rsk_ops)->family == AF_INET)
		TCP_SKB_CB(skb)->header.h4.iif = skb->skb_iif;
#if IS_ENABLED(CONFIG_IPV6)
	else
		TCP_SKB_CB(skb)->header.h6.iif = skb->skb_iif;
#endif
	TCP_SKB_CB(skb)->seq = ntohl(th->seq);
	TCP_SKB_CB(skb)->end_seq = ntohl(th->seq);
	TCP_SKB_CB(skb)->ack_seq = ntohl(th->ack_seq);
}

/* TCP's own handler, which consumes the packet. The caller is in an RCU read-side section with bottom halves off. */
void accf_tcp_rcv(const struct request_sock *req, struct sk_buff *skb)
{
	if (READ_ONCE(req->rsk_ops)->family == AF_INET)
		rcu_dereference(inet_protos[IPPROTO_TCP])->handler(skb);
#if IS_ENABLED(CONFIG_IPV6)
	else
		rcu_dereference(inet6_protos[IPPROTO_TCP])->handler(skb);
#endif
}

void accf_skb_drop(struct sk_buff *skb)
{
	kfree_skb(skb);
}
