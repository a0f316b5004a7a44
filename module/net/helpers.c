// SPDX-License-Identifier: GPL-2.0-only
/*
 * C helpers: the macros and inline functions of the kernel that bindgen cannot see, and the flow and skb fields that
 * differ from kernel to kernel. No decisions are taken here.
 */

#include <linux/capability.h>
#include <linux/netlink.h>
#include <net/inet6_hashtables.h>
#include <net/inet_hashtables.h>
#include <net/netns/generic.h>

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
