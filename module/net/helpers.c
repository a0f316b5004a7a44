// SPDX-License-Identifier: GPL-2.0-only
/*
 * Shims for macros and inline functions of the kernel that bindgen cannot see.
 * What they do is documented where the kernel defines it.
 */

#include <linux/capability.h>
#include <linux/netlink.h>

#include "bindings.h"

/* As listen_sock.rs and tcp_segment.rs read these fields. */
static_assert(sizeof_field(struct sock, sk_ack_backlog) == sizeof(u32));
static_assert(sizeof_field(struct sock, sk_max_ack_backlog) == sizeof(u32));
static_assert(sizeof_field(struct sk_buff, transport_header) == sizeof(u16));

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

/* Taken inside of the lock of a listener, for the first request of a family. */
static DEFINE_SPINLOCK(accf_overrides_lock);

void accf_lock_overrides(void)
{
	spin_lock(&accf_overrides_lock);
}

void accf_unlock_overrides(void)
{
	spin_unlock(&accf_overrides_lock);
}

void accf_synchronize_rcu_tasks(void)
{
	synchronize_rcu_tasks();
}

struct module *accf_this_module(void)
{
	return THIS_MODULE;
}

u32 accf_num_online_cpus(void)
{
	return num_online_cpus();
}

unsigned long accf_jiffies(void)
{
	return jiffies;
}

size_t accf_page_size(void)
{
	return PAGE_SIZE;
}

int accf_copy_struct_from_sockptr(void *to, size_t to_size, sockptr_t from, size_t from_size)
{
	return copy_struct_from_sockptr(to, to_size, from, from_size);
}

size_t accf_nla_total_size(size_t payload)
{
	return nla_total_size(payload);
}

bool accf_timer_pending(const struct timer_list *timer)
{
	return timer_pending(timer);
}

u32 accf_rto_max(void)
{
	return TCP_RTO_MAX;
}

u8 accf_sk_state(const struct sock *sk)
{
	return inet_sk_state_load(sk);
}

u32 accf_swap_backlog(struct sock *sk, u32 backlog)
{
	return xchg(&sk->sk_max_ack_backlog, backlog);
}

bool accf_replace_backlog(struct sock *sk, u32 from, u32 to)
{
	return try_cmpxchg(&sk->sk_max_ack_backlog, &from, to);
}

u32 accf_somaxconn(const struct sock *sk)
{
	return READ_ONCE(sock_net(sk)->core.sysctl_somaxconn);
}

/* inet_hash() sets the flag, and only copies of the socket lose it. */
bool accf_has_listened(const struct sock *sk)
{
	return sock_flag(sk, SOCK_RCU_FREE);
}

bool accf_may_set_max_parked(const struct sock *sk)
{
	return ns_capable(sock_net(sk)->user_ns, CAP_NET_ADMIN);
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

/* TCP_DEFER_ACCEPT, as the number of retransmissions that TCP keeps. */
u8 accf_take_defer_accept(struct sock *sk)
{
	return xchg(&inet_csk(sk)->icsk_accept_queue.rskq_defer_accept, 0);
}

void accf_ulp_data_publish(struct sock *sk, void *data)
{
	rcu_assign_pointer(inet_csk(sk)->icsk_ulp_data, data);
}

/* For an RCU reader, or with bottom halves off, which is one. */
void *accf_ulp_data_rcu(const struct sock *sk)
{
	return rcu_dereference_check(inet_csk(sk)->icsk_ulp_data, rcu_read_lock_bh_held());
}

bool accf_req_get(struct request_sock *req)
{
	return refcount_inc_not_zero(&req->rsk_refcnt);
}

/* As tcp_make_synack() does: what the client may echo. */
void accf_req_note_tsval_sent(struct request_sock *req)
{
	WRITE_ONCE(tcp_rsk(req)->snt_tsval_last, tcp_rsk_tsval(tcp_rsk(req)));
}
