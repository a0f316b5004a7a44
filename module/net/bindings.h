/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The input of bindgen: the kernel's request-socket types, and the functions
 * of the C files in this directory.
 */
#ifndef ACCF_NET_BINDINGS_H
#define ACCF_NET_BINDINGS_H

#include <linux/ipv6.h>
#include <linux/module.h>
#include <linux/random.h>
#include <linux/rcupdate.h>
#include <linux/siphash.h>
#include <linux/skbuff.h>
#include <linux/sockptr.h>
#include <linux/tcp.h>
#include <linux/timer.h>
#include <linux/workqueue.h>
#include <net/inet_connection_sock.h>
#include <net/netlink.h>
#include <net/request_sock.h>
#include <net/sock.h>
#include <net/tcp.h>

#include "../uapi/accf.h"

enum {
	ACCF_AF_INET = AF_INET,
	ACCF_AF_INET6 = AF_INET6,
	ACCF_TCP_CLOSE = TCP_CLOSE,
	ACCF_TCP_LISTEN = TCP_LISTEN,
	ACCF_HZ = HZ,
};

/*
 * Offsets, in bytes, of fields for which bindgen has no name, or no stable one.
 */
enum {
	ACCF_REQ_LISTENER = offsetof(struct request_sock, rsk_listener),
	ACCF_SK_ACK_BACKLOG = offsetof(struct sock, sk_ack_backlog),
	ACCF_SK_MAX_ACK_BACKLOG = offsetof(struct sock, sk_max_ack_backlog),
	ACCF_SKB_TRANSPORT_HEADER = offsetof(struct sk_buff, transport_header),
};

/*
 * The state of a listener and of one of its requests, checked before the
 * request is parked.
 */
enum {
	/* tcp_abort_on_overflow is set: no request may be parked. */
	ACCF_ABORTS_ON_OVERFLOW = 1,
	/* The listener checks signatures: no request may be parked. */
	ACCF_IS_SIGNED = 2,
	/* The request is marked as acked. */
	ACCF_IS_ACKED = 4,
	/*
	 * The request is not in the table of connections any more, or its
	 * listener has stopped.
	 */
	ACCF_IS_GONE = 8,
};

/* What the socket options of a listener say of keepalive probes. */
struct accf_keepalive {
	/* TCP_KEEPIDLE, in jiffies. */
	u32 idle;
	/* TCP_KEEPINTVL, in jiffies. */
	u32 interval;
	/* TCP_KEEPCNT. */
	u8 probes;
	/* SO_KEEPALIVE. */
	bool is_on;
};

/* The part of a listener's write_seq that is kept with a parked request. */
#define ACCF_WRITE_SEQ_MASK 0xffffff

/* What a listener has done since one of its requests was parked. */
enum {
	/* It has stopped. */
	ACCF_HAS_STOPPED = 1,
	/*
	 * It has stopped, by shutdown() or by another way to disconnect, and
	 * has listened again.
	 */
	ACCF_LISTENED_AGAIN = 2,
};

/* The SO_REUSEPORT group of a listener, and its other members. */
enum {
	/* The listener is in a group. */
	ACCF_IN_GROUP = 1,
	/* A member makes sure that no clone outlives the module. */
	ACCF_RESTORES_CLONES = 2,
	/* A member does not, or there may be such a member. */
	ACCF_MAY_HOLD_CLONES = 4,
};

/* Both ends of a connection request, as they stand on the wire. */
struct accf_endpoints {
	/* Of the packets: AF_INET also for a v4-mapped client. */
	u16 family;
	__be16 client_port;
	__be16 server_port;
	__be32 client_v4;
	__be32 server_v4;
	struct in6_addr client_v6;
	struct in6_addr server_v6;
};

/* What IP says of a segment, each member in a register. */
struct accf_arrival {
	/* The fields of its header, by the shifts below; the other bits are 0. */
	u64 ip;
	/* The index of the interface that it came in by: 32 bits. */
	u64 iif;
};

enum {
	/* The flow label, 20 bits in host order; 0 in IPv4. */
	ACCF_FLOW_LABEL_SHIFT = 28,
	/* TTL, or hop limit, 8 bits. */
	ACCF_HOP_LIMIT_SHIFT = 48,
	/* TOS, or traffic class, 8 bits, with those of ECN. */
	ACCF_DSFIELD_SHIFT = 56,
};

/* The SYN-ACK timer of a request. */
struct accf_synack_timer {
	/* Jiffies until it fires; 0 if it is not pending, or late. */
	long left;
	/* How often it has fired. */
	u8 timeouts;
	/* How often it may fire while the backlog is not under pressure. */
	u8 max_timeouts;
};

/* Contexts. */
bool accf_bh_is_off(void);
void accf_local_bh_disable(void);
void accf_local_bh_enable(void);
void accf_lock_overrides(void);
void accf_unlock_overrides(void);
void accf_synchronize_rcu_tasks(void);
struct module *accf_this_module(void);
void accf_pin_module(void);
int accf_retire_queue_alloc(void);
void accf_retire_queue_destroy(void);
void accf_retire(struct rcu_work *work, work_func_t func);

/* Network namespaces. */
int accf_netns_register(void);
void accf_netns_unregister(void);
struct accf_net *accf_netns(const struct sock *sk);
bool accf_netns_charge(struct accf_net *net, u32 limit);
void accf_netns_uncharge(struct accf_net *net);

/* User space. */
int accf_copy_struct_from_sockptr(void *to, size_t to_size, sockptr_t from,
				  size_t from_size);
bool accf_may_set_max_parked(const struct sock *sk);
size_t accf_page_size(void);
size_t accf_nla_total_size(size_t payload);
bool accf_diag_has_room(const struct sk_buff *skb, size_t len);

/* Listeners. */
u8 accf_sk_state(const struct sock *sk);
u32 accf_swap_backlog(struct sock *sk, u32 backlog);
bool accf_replace_backlog(struct sock *sk, u32 from, u32 to);
u32 accf_somaxconn(const struct sock *sk);
struct accf_keepalive accf_keepalive(const struct sock *sk);
bool accf_sk_has_our_ulp(const struct sock *sk);
bool accf_has_listened(const struct sock *sk);
u32 accf_reuseport_peers(const struct sock *sk,
			 bool (*restores_clones)(const struct sock *sk));
bool accf_is_in_group(const struct sock *sk);
bool accf_has_left_group(const struct sock *sk);
bool accf_has_taker(const struct sock *sk);
u32 accf_req_flags(const struct sock *sk, const struct request_sock *req);
bool accf_carries_more_than_tcp(const struct sock *sk);
bool accf_holds_netns(const struct sock *sk);
void accf_restore_zerocopy(struct sock *sk);
u32 accf_num_online_cpus(void);
int accf_qlen(const struct sock *sk);
void accf_qlen_add(struct sock *sk, int n);
int accf_young(const struct sock *sk);
void accf_young_add(struct sock *sk, int n);
u8 accf_take_defer_accept(struct sock *sk);
void accf_ulp_data_publish(struct sock *sk, void *data);
void *accf_ulp_data_rcu(const struct sock *sk);

/* Requests. */
bool accf_req_get(struct request_sock *req);
bool accf_req_is_hashed(struct request_sock *req);
u32 accf_req_set_acked(const struct sock *sk, struct request_sock *req);
void accf_req_clear_acked(struct request_sock *req);
bool accf_req_was_acked(const struct request_sock *req);
bool accf_timer_pending(const struct timer_list *timer);
struct accf_synack_timer accf_req_synack_timer(const struct request_sock *req);
unsigned long accf_jiffies(void);
u32 accf_rto_max(void);
u32 accf_echoed_rtt_us(const struct request_sock *req, u64 now_us, u32 tsecr);
void accf_set_synack_rtt_us(struct request_sock *req, u32 rtt_us, u64 now_us);
void accf_child_set_ack(struct sock *child, const struct request_sock *req,
			struct sk_buff *skb, struct accf_arrival ack, u8 ace);
void accf_child_set_waited(struct sock *child, u32 waited_ms);
void accf_req_endpoints(const struct request_sock *req,
			struct accf_endpoints *ends);
u64 accf_req_source(const struct request_sock *req);
bool accf_req_can_migrate(const struct request_sock *req);
u32 accf_req_listener_since(const struct request_sock *req, u32 write_seq);
bool accf_req_is_connected(const struct request_sock *req);
bool accf_req_has_successor(const struct request_sock *req);
struct request_sock *accf_req_of_skb(const struct sock *sk, struct sk_buff *skb);
void accf_req_note_tsval_sent(struct request_sock *req);

/* Segments. */
struct accf_arrival accf_skb_arrival(const struct sk_buff *skb);
struct sk_buff *accf_skb_received(const struct request_sock *req,
				  const void *packet, u32 len, u32 network_len,
				  u32 iif);
bool accf_skb_route(const struct request_sock *req, struct sk_buff *skb);
void accf_send_probe(const struct request_sock *req, struct sk_buff *skb,
		     void (*send_ack)(const struct sock *sk, struct sk_buff *skb,
				      struct request_sock *req));
void accf_skb_fill_cb(const struct request_sock *req, struct sk_buff *skb);
void accf_tcp_rcv(const struct request_sock *req, struct sk_buff *skb);
void accf_skb_drop(struct sk_buff *skb);

#endif /* ACCF_NET_BINDINGS_H */
