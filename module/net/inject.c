// SPDX-License-Identifier: GPL-2.0-only
/* Hands a rebuilt segment to TCP. */

#include <net/ip6_route.h>
#include <net/protocol.h>
#include <net/route.h>

#include "bindings.h"

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
