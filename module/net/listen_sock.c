// SPDX-License-Identifier: GPL-2.0-only
/*
 * What must be known of a listening socket.
 */

#include <linux/net.h>
#include <linux/netlink.h>

#include "bindings.h"

#ifndef MODULE
#error "THIS_MODULE tells this module's ULPs from others: it must be a module"
#endif

/**
 * accf_sk_has_our_ulp() - Check whether the ULP of a socket is this module's.
 * @sk: the socket
 *
 * The module's ULPs are told by their owner: each publishes a Listener in
 * icsk_ulp_data. A ULP that does not must not be registered by this module.
 *
 * Context: RCU reader. The module of the ULP stays meanwhile: the socket holds
 *          a reference to it, and tcp_unregister_ulp() waits for RCU readers.
 */
bool accf_sk_has_our_ulp(const struct sock *sk)
{
	const struct tcp_ulp_ops *ulp = READ_ONCE(inet_csk(sk)->icsk_ulp_ops);

	return ulp && ulp->owner == THIS_MODULE;
}

/**
 * accf_carries_more_than_tcp() - Check whether others use the socket as well.
 * @sk: the socket, locked
 *
 * MPTCP (RFC 8684), SMC (RFC 7609), and any other owner of sk_user_data may
 * change the socket's operations, or copy them, as SMC does even after it has
 * fallen back to TCP.
 */
bool accf_carries_more_than_tcp(const struct sock *sk)
{
	bool does = sk_is_mptcp(sk) || rcu_access_pointer(sk->sk_user_data);

#if IS_ENABLED(CONFIG_SMC)
	does |= tcp_sk(sk)->syn_smc;
#endif
	return does;
}

/**
 * accf_holds_netns() - Check whether a socket keeps its network namespace.
 * @sk: the socket
 *
 * A request keeps its listener, and with that the namespace, unless the listener
 * is a socket that the kernel has made for itself.
 */
bool accf_holds_netns(const struct sock *sk)
{
	return sk->sk_net_refcnt || net_eq(sock_net(sk), &init_net);
}

/**
 * accf_restore_zerocopy() - Let a socket, and what it accepts, send zero-copy.
 * @sk: the socket, locked, which carries TCP only
 *
 * __tcp_set_ulp() clears SOCK_SUPPORT_ZC before it calls init(), because kTLS
 * does not take the buffers of io_uring (msg_ubuf), and inet_accept() copies
 * the bit to each socket that it accepts. tcp_init_sock() has set it for every
 * TCP socket, and it holds wherever data goes to tcp_sendmsg() itself. A ULP
 * that is set on an accepted socket clears the bit of that socket again.
 *
 * Context: Process. tcp_close() clears sk_socket under the socket's lock.
 */
void accf_restore_zerocopy(struct sock *sk)
{
	if (sk->sk_socket && sk->sk_prot->sendmsg == tcp_sendmsg)
		set_bit(SOCK_SUPPORT_ZC, &sk->sk_socket->flags);
}

/**
 * accf_keepalive() - Tell how a listener's socket options probe its connections.
 * @sk: the listener
 *
 * What it accepts inherits these.
 *
 * Context: Any.
 */
struct accf_keepalive accf_keepalive(const struct sock *sk)
{
	const struct tcp_sock *tp = tcp_sk(sk);

	return (struct accf_keepalive) {
		.idle = keepalive_time_when(tp),
		.interval = keepalive_intvl_when(tp),
		.probes = keepalive_probes(tp),
		.is_on = sock_flag(sk, SOCK_KEEPOPEN),
	};
}

/**
 * accf_diag_has_room() - Check whether an answer of inet_diag may grow.
 * @skb: the answer
 * @len: by how many bytes
 *
 * What does not fit into a message of a dump goes into the next one. For a
 * single socket, tcp_diag_dump_one() has made the message as large as it was
 * told before, and warns if that was not enough; but the listener may have got
 * its filter since.
 */
bool accf_diag_has_room(const struct sk_buff *skb, size_t len)
{
	return (nlmsg_hdr(skb)->nlmsg_flags & NLM_F_MULTI) || skb_tailroom(skb) >= len;
}
