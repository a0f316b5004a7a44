// SPDX-License-Identifier: GPL-2.0-only
/*
 * C helpers: the macros and inline functions of the kernel that bindgen cannot see, and the flow and skb fields that
 * differ from kernel to kernel. No decisions are taken here.
 */

#include <net/ip6_route.h>
#include <net/protocol.h>
#include <net/route.h>

#include "bindings.h"

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

void accf_pin_module(void)
{
	__module_get(THIS_MODULE);
}

bool accf_sk_acceptq_is_full(const struct sock *sk)
{
	return sk_acceptq_is_full(sk);
}

bool accf_abort_on_overflow(const struct sock *sk)
{
	return READ_ONCE(sock_net(sk)->ipv4.sysctl_tcp_abort_on_overflow);
}

/* Does the socket carry more than TCP (RFC 8684, RFC 7609)? */
bool accf_is_mptcp_or_smc(const struct sock *sk)
{
	bool is_either = sk_is_mptcp(sk);

#if IS_ENABLED(CONFIG_SMC)
	is_either |= tcp_sk(sk)->syn_smc;
#endif
	return is_either;
}

/* Does the listener check signatures (RFC 2385, RFC 5925)? */
bool accf_is_signed(const struct sock *sk)
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

void accf_ulp_data_publish(struct sock *sk, void *data)
{
	rcu_assign_pointer(inet_csk(sk)->icsk_ulp_data, data);
}

void *accf_ulp_data_rcu(const struct sock *sk)
{
	return rcu_dereference(inet_csk(sk)->icsk_ulp_data);
}

struct sock *accf_req_listener(const struct request_sock *req)
{
	return req->rsk_listener;
}

bool accf_req_get(struct request_sock *req)
{
	return refcount_inc_not_zero(&req->rsk_refcnt);
}

bool accf_req_is_hashed(struct request_sock *req)
{
	return sk_hashed(req_to_sk(req));
}

bool accf_timer_pending(const struct timer_list *timer)
{
	return timer_pending(timer);
}

unsigned long accf_jiffies(void)
{
	return jiffies;
}

u64 accf_clock_us(void)
{
	return tcp_clock_us();
}

void accf_req_endpoints(const struct request_sock *req, struct accf_endpoints *ends)
{
	const struct inet_request_sock *ireq = inet_rsk(req);

	memset(ends, 0, sizeof(*ends));
	ends->family = req->rsk_ops->family;
	ends->client_port = ireq->ir_rmt_port;
	ends->server_port = htons(ireq->ir_num);
	ends->client_v4 = ireq->ir_rmt_addr;
	ends->server_v4 = ireq->ir_loc_addr;
#if IS_ENABLED(CONFIG_IPV6)
	ends->client_v6 = ireq->ir_v6_rmt_addr;
	ends->server_v6 = ireq->ir_v6_loc_addr;
#endif
}

/* Has the listener stopped, and may the kernel move its requests to another one of its group? */
bool accf_reuseport_may_migrate(const struct sock *sk)
{
	return inet_sk_state_load(sk) != TCP_LISTEN && rcu_access_pointer(sk->sk_reuseport_cb);
}

void accf_young_inc(struct sock *sk)
{
	atomic_inc(&inet_csk(sk)->icsk_accept_queue.young);
}

const struct tcphdr *accf_tcp_hdr(const struct sk_buff *skb)
{
	return tcp_hdr(skb);
}

u32 accf_skb_end_seq(const struct sk_buff *skb)
{
	return TCP_SKB_CB(skb)->end_seq;
}

/* The timestamp that the segment carries (RFC 7323), if any. */
bool accf_skb_tsval(const struct sock *sk, const struct sk_buff *skb, u32 *tsval)
{
	struct tcp_options_received opt;

	opt.saw_tstamp = 0;
	tcp_parse_options(sock_net(sk), skb, &opt, 0, NULL);
	if (opt.saw_tstamp)
		*tsval = opt.rcv_tsval;
	return opt.saw_tstamp;
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
	if (req->rsk_ops->family == AF_INET) {
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
 * Gives the packet a route: TCP looks at it, for instance when the request is gone and a reset is due. It is an output
 * route to the listener's address, as an input route would be refused for loopback. Where that address is not local
 * (IP_TRANSPARENT), its route must not become the child's and there is none.
 */
bool accf_skb_route_local(const struct request_sock *req, struct sk_buff *skb)
{
	const struct inet_request_sock *ireq = inet_rsk(req);
	struct net *net = read_pnet(&ireq->ireq_net);
	struct dst_entry *dst;
	bool local;

	if (req->rsk_ops->family == AF_INET) {
		struct flowi4 fl4 = {
			.flowi4_oif = ireq->ir_iif,
			.flowi4_mark = ireq->ir_mark,
			.flowi4_proto = IPPROTO_TCP,
			.daddr = ireq->ir_loc_addr,
			.fl4_sport = ireq->ir_rmt_port,
			.fl4_dport = htons(ireq->ir_num),
		};
		struct rtable *rt = ip_route_output_flow(net, &fl4, NULL);

		if (IS_ERR(rt))
			return false;
		dst = &rt->dst;
		local = rt->rt_type == RTN_LOCAL;
	} else {
#if IS_ENABLED(CONFIG_IPV6)
		struct flowi6 fl6 = {
			.flowi6_oif = ireq->ir_iif,
			.flowi6_mark = ireq->ir_mark,
			.flowi6_proto = IPPROTO_TCP,
			.daddr = ireq->ir_v6_loc_addr,
			.fl6_sport = ireq->ir_rmt_port,
			.fl6_dport = htons(ireq->ir_num),
		};

		dst = ip6_route_output(net, NULL, &fl6);
		local = !dst->error && (dst_rt6_info(dst)->rt6i_flags & RTF_LOCAL);
#else
		return false;
#endif
	}
	if (local)
		skb_dst_set(skb, dst);
	else
		dst_release(dst);
	return local;
}

/* TCP's own handler, which consumes the packet. The caller is in an RCU read-side section with bottom halves off. */
void accf_tcp_rcv(const struct request_sock *req, struct sk_buff *skb)
{
	if (req->rsk_ops->family == AF_INET)
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
