// SPDX-License-Identifier: GPL-2.0-only
/*
 * Reads what must be kept of a packet, makes a received packet of the headers
 * that inject.rs has built, and hands it to TCP.
 */

#include <net/ip.h>
#include <net/ip6_route.h>
#include <net/protocol.h>
#include <net/route.h>
#include <net/tcp_ecn.h>

#include "bindings.h"

static bool accf_req_is_ipv4(const struct request_sock *req)
{
	return READ_ONCE(req->rsk_ops)->family == AF_INET;
}

/**
 * accf_skb_arrival() - Tell what a child takes from a segment's IP header.
 * @skb: the segment, which tcp_check_req() has checked
 *
 * As tcp_v4_syn_recv_sock() and tcp_v6_syn_recv_sock() read it.
 *
 * Context: Any.
 */
struct accf_arrival accf_skb_arrival(const struct sk_buff *skb)
{
	struct accf_arrival arrival = {};

	if (skb->protocol == htons(ETH_P_IP)) {
		arrival.iif = inet_iif(skb);
		arrival.ip = (u64)ip_hdr(skb)->ttl << ACCF_HOP_LIMIT_SHIFT |
			     (u64)ip_hdr(skb)->tos << ACCF_DSFIELD_SHIFT;
		return arrival;
	}
#if IS_ENABLED(CONFIG_IPV6)
	arrival.iif = tcp_v6_iif(skb);
	arrival.ip = (u64)ntohl(ip6_flowlabel(ipv6_hdr(skb))) << ACCF_FLOW_LABEL_SHIFT |
		     (u64)ipv6_hdr(skb)->hop_limit << ACCF_HOP_LIMIT_SHIFT |
		     (u64)ipv6_get_dsfield(ipv6_hdr(skb)) << ACCF_DSFIELD_SHIFT;
#endif
	return arrival;
}

/*
 * Says that @skb has come in by the interface @iif. A look-up for it must find
 * @req, so if that is bound to another interface, the one is a VRF and the other
 * is a member of it.
 */
static void accf_skb_set_iif(const struct request_sock *req, struct sk_buff *skb, u32 iif)
{
	u32 bound = inet_rsk(req)->ir_iif;
	bool is_l3_slave = bound && bound != iif;

	if (accf_req_is_ipv4(req)) {
		skb->protocol = htons(ETH_P_IP);
		skb->skb_iif = iif;
		IPCB(skb)->iif = is_l3_slave ? bound : iif;
		if (is_l3_slave)
			IPCB(skb)->flags |= IPSKB_L3SLAVE;
	} else {
		skb->protocol = htons(ETH_P_IPV6);
		skb->skb_iif = bound ?: iif;
		IP6CB(skb)->iif = iif;
		IP6CB(skb)->nhoff = offsetof(struct ipv6hdr, nexthdr);
		if (is_l3_slave)
			IP6CB(skb)->flags |= IP6SKB_L3SLAVE;
	}
}

/**
 * accf_skb_received() - Make a packet as IP would hand it to TCP, without a route.
 * @req: the request that it belongs to
 * @packet: IP and TCP header
 * @len: their length in bytes
 * @network_len: the length of the IP header in bytes
 * @iif: the interface that it claims to have come in by, from accf_skb_arrival()
 *
 * See ip_local_deliver_finish() and ip6_input_finish(). If the interface is gone,
 * loopback takes its place as the packet's device.
 *
 * Context: RCU reader; does not sleep.
 * Return: the packet, which the caller owns, or NULL if there is no memory.
 */
struct sk_buff *accf_skb_received(const struct request_sock *req, const void *packet,
				  u32 len, u32 network_len, u32 iif)
{
	const struct inet_request_sock *ireq = inet_rsk(req);
	struct net *net = read_pnet(&ireq->ireq_net);
	struct sk_buff *skb;

	skb = alloc_skb(len, GFP_ATOMIC | __GFP_NOWARN);
	if (!skb)
		return NULL;
	skb_put_data(skb, packet, len);
	skb_reset_mac_header(skb);
	skb_reset_network_header(skb);
	skb_set_transport_header(skb, network_len);
	__skb_pull(skb, network_len);
	skb->pkt_type = PACKET_HOST;
	skb->ip_summed = CHECKSUM_UNNECESSARY;
	skb->dev = dev_get_by_index_rcu(net, iif) ?: net->loopback_dev;
	skb->mark = ireq->ir_mark;
	accf_skb_set_iif(req, skb, iif);
	return skb;
}

/*
 * The route of an IPv4 packet says "for us" and nothing else. Unlike a route
 * that a look-up finds, it says nothing of the device (VRFs), and suits
 * addresses that are not the machine's own (IP_TRANSPARENT). It is obsolete from
 * the beginning, so that the child does not take it for the client's next packet
 * (tcp_v4_early_demux()).
 */
static struct dst_entry *accf_route_ipv4(struct net *net)
{
	struct rtable *rt = rt_dst_alloc(net->loopback_dev, RTCF_LOCAL, RTN_LOCAL, false);

	if (!rt)
		return NULL;
	rt->dst.obsolete = DST_OBSOLETE_KILL;
	return &rt->dst;
}

/*
 * The same for IPv6. The route comes from no table, so its first check fails
 * (ip6_dst_check()), and the child does not take it for the client's next
 * packet. It is not counted: with many routes that are, each new one would
 * start the garbage collector.
 */
static struct dst_entry *accf_route_ipv6(struct net *net)
{
#if IS_ENABLED(CONFIG_IPV6)
	struct rt6_info *rt = ip6_dst_alloc(net, net->loopback_dev, DST_NOCOUNT);

	if (rt) {
		rt->rt6i_flags = RTF_LOCAL;
		return &rt->dst;
	}
#endif
	return NULL;
}

/**
 * accf_skb_route() - Give a packet a route.
 * @req: the request that it belongs to
 * @skb: the packet, from accf_skb_received()
 *
 * TCP looks at the route, for instance when the request is gone and a reset is
 * due, and the child keeps it until the client's next packet. An input route
 * would be refused for loopback.
 *
 * Context: Bottom halves off; does not sleep.
 * Return: false if there is no memory.
 */
bool accf_skb_route(const struct request_sock *req, struct sk_buff *skb)
{
	struct net *net = read_pnet(&inet_rsk(req)->ireq_net);
	struct dst_entry *dst;

	dst = accf_req_is_ipv4(req) ? accf_route_ipv4(net) : accf_route_ipv6(net);
	if (!dst)
		return false;
	skb_dst_set(skb, dst);
	return true;
}

/**
 * accf_skb_fill_cb() - Fill in TCP's control block of a packet.
 * @req: the request that it belongs to
 * @skb: the packet, from accf_skb_received()
 *
 * As far as sending a reset takes it (tcp_v4_fill_cb(), tcp_v6_fill_cb()):
 * where the packet came in, and no IP options. IP's control block begins where
 * TCP's does, so it is copied first.
 *
 * Context: Any.
 */
void accf_skb_fill_cb(const struct request_sock *req, struct sk_buff *skb)
{
	const struct tcphdr *th = tcp_hdr(skb);
	struct inet_skb_parm h4 = *IPCB(skb);
#if IS_ENABLED(CONFIG_IPV6)
	struct inet6_skb_parm h6 = *IP6CB(skb);
#endif

	memset(TCP_SKB_CB(skb), 0, sizeof(*TCP_SKB_CB(skb)));
	if (accf_req_is_ipv4(req))
		TCP_SKB_CB(skb)->header.h4 = h4;
#if IS_ENABLED(CONFIG_IPV6)
	else
		TCP_SKB_CB(skb)->header.h6 = h6;
#endif
	TCP_SKB_CB(skb)->seq = ntohl(th->seq);
	TCP_SKB_CB(skb)->end_seq = ntohl(th->seq);
	TCP_SKB_CB(skb)->ack_seq = ntohl(th->ack_seq);
}

/**
 * accf_send_probe() - Send a keepalive probe to the client of a request.
 * @req: the request
 * @skb: the client's last bare ACK, from accf_skb_received(), with TCP's control
 *	 block
 * @send_ack: send_ack() of TCP's rsk_ops
 *
 * An established client does not answer an ACK of the next byte, but one of a
 * byte before (RFC 1122, section 4.2.3.6; RFC 9293, section 3.8.4). send_ack()
 * sends snt_isn + 1, so it gets a copy whose snt_isn is one less. It takes no
 * reference, and keeps nothing.
 *
 * Context: RCU reader with bottom halves off. No lock may be held.
 */
void accf_send_probe(const struct request_sock *req, struct sk_buff *skb,
		     void (*send_ack)(const struct sock *sk, struct sk_buff *skb,
				      struct request_sock *req))
{
	/* Other CPUs may write what send_ack() does not look at, or ts_recent. */
	struct tcp_request_sock probe = data_race(*tcp_rsk(req));

	probe.snt_isn--;
	send_ack(req->rsk_listener, skb, &probe.req.req);
}

/**
 * accf_tcp_rcv() - Hand a packet to TCP's receive handler, which consumes it.
 * @req: the request that it belongs to
 * @skb: the packet, with a route
 *
 * Context: RCU reader with bottom halves off. No lock may be held that TCP
 *          takes.
 */
void accf_tcp_rcv(const struct request_sock *req, struct sk_buff *skb)
{
	if (accf_req_is_ipv4(req))
		rcu_dereference(inet_protos[IPPROTO_TCP])->handler(skb);
#if IS_ENABLED(CONFIG_IPV6)
	else
		rcu_dereference(inet6_protos[IPPROTO_TCP])->handler(skb);
#endif
}

/**
 * accf_skb_drop() - Free a packet from accf_skb_received().
 * @skb: the packet
 *
 * Context: Any.
 */
void accf_skb_drop(struct sk_buff *skb)
{
	kfree_skb(skb);
}
