// SPDX-License-Identifier: GPL-2.0-only

#include <linux/cpu.h>
#include <linux/delay.h>
#include <linux/in.h>
#include <linux/kthread.h>
#include <linux/net.h>
#include <linux/slab.h>
#include <linux/sockptr.h>
#include <net/net_namespace.h>
#include <net/tcp.h>

#include "bindings.h"
#include "fabricate.h"

#define CLIENT_ISN 0xfffffff0u
#define SERVER_ISN 1000u

struct socket *accf_kunit_listener(int family)
{
	struct sockaddr_storage addr = { .ss_family = family };
	struct socket *sock;

	if (sock_create_kern(&init_net, family, SOCK_STREAM, IPPROTO_TCP, &sock))
		return NULL;
	if (kernel_bind(sock, (void *)&addr, sizeof(addr)) || kernel_listen(sock, 128)) {
		sock_release(sock);
		return NULL;
	}
	return sock;
}

struct sock *accf_kunit_sk(struct socket *sock)
{
	return sock->sk;
}

int accf_kunit_attach(struct socket *sock, const char *name)
{
	return sock->ops->setsockopt(sock, SOL_TCP, TCP_ULP,
				     KERNEL_SOCKPTR((void *)name), strlen(name));
}

bool accf_kunit_leave_init_net(struct socket *sock)
{
	struct net *net = kzalloc(sizeof(*net), GFP_KERNEL);

	if (!net)
		return false;
	/* A module that takes the socket for its own finds its counters. */
	rcu_assign_pointer(net->gen, rcu_access_pointer(init_net.gen));
	write_pnet(&sock->sk->sk_net, net);
	return true;
}

void accf_kunit_hold_net(struct socket *sock, bool holds)
{
	sock->sk->sk_net_refcnt = holds;
}

void accf_kunit_return_to_init_net(struct socket *sock)
{
	struct net *net = sock_net(sock->sk);

	accf_kunit_hold_net(sock, false);
	write_pnet(&sock->sk->sk_net, &init_net);
	kfree(net);
}

void accf_kunit_close(struct socket *sock)
{
	sock_release(sock);
	/* So that nothing refers to a request of the listener that a test frees. */
	accf_kunit_flush();
}

static void timer_fired(struct timer_list *timer)
{
}

/* The references to a request: of the table, of the timer, and of the test. */
#define REFERENCES 3

struct request_sock *accf_kunit_request(struct sock *listener, const struct request_sock_ops *ops,
					const struct tcp_request_sock_ops *tcp_ops, u32 age_us)
{
	struct tcp_request_sock *treq = kzalloc(sizeof(*treq), GFP_KERNEL);
	struct request_sock *req;

	if (!treq)
		return NULL;
	req = &treq->req.req;
	req->rsk_ops = ops;
	req->rsk_listener = listener;
	sock_hold(listener);
	treq->af_specific = tcp_ops;
	treq->rcv_isn = CLIENT_ISN;
	treq->rcv_nxt = CLIENT_ISN + 1;
	treq->snt_isn = SERVER_ISN;
	treq->snt_synack = tcp_clock_us() - age_us;
	treq->snt_tsval_first = treq->snt_tsval_last = tcp_rsk_tsval(treq) - age_us / 1000;
	treq->req.ireq_state = TCP_NEW_SYN_RECV;
	treq->req.ireq_family = listener->sk_family;
	write_pnet(&treq->req.ireq_net, sock_net(listener));
	timer_setup(&req->rsk_timer, timer_fired, TIMER_PINNED);
	mod_timer(&req->rsk_timer, jiffies + HZ);
	/* It looks hashed, as the only one of a list, and can be taken out. */
	req_to_sk(req)->sk_nulls_node.next = (struct hlist_nulls_node *)NULLS_MARKER(0);
	req_to_sk(req)->sk_nulls_node.pprev = &req_to_sk(req)->sk_nulls_node.next;
	reqsk_queue_added(&inet_csk(listener)->icsk_accept_queue);
	refcount_set(&req->rsk_refcnt, REFERENCES);
	return req;
}

struct request_sock *accf_kunit_clone(const struct request_sock *req)
{
	struct tcp_request_sock *clone = kzalloc(sizeof(*clone), GFP_KERNEL);

	if (!clone)
		return NULL;
	memcpy(clone, req, sizeof(*clone));
	/* The kernel, too, sets up the timer and the reference count again. */
	memset(&clone->req.req.rsk_timer, 0, sizeof(clone->req.req.rsk_timer));
	timer_setup(&clone->req.req.rsk_timer, timer_fired, TIMER_PINNED);
	sk_node_init(&req_to_sk(&clone->req.req)->sk_node);
	refcount_set(&clone->req.req.rsk_refcnt, REFERENCES);
	sock_hold(clone->req.req.rsk_listener);
	reqsk_queue_added(&inet_csk(clone->req.req.rsk_listener)->icsk_accept_queue);
	return &clone->req.req;
}

void accf_kunit_unhash(struct request_sock *req)
{
	sk_node_init(&req_to_sk(req)->sk_node);
}

void accf_kunit_kill(struct request_sock *req)
{
	timer_delete_sync(&req->rsk_timer);
	accf_kunit_unhash(req);
	refcount_set(&req->rsk_refcnt, 0);
}

unsigned int accf_kunit_references(const struct request_sock *req)
{
	return refcount_read(&req->rsk_refcnt);
}

void accf_kunit_stop_timer(struct request_sock *req)
{
	timer_delete_sync(&req->rsk_timer);
}

void accf_kunit_set_timer(struct request_sock *req, unsigned long ticks)
{
	mod_timer(&req->rsk_timer, jiffies + ticks);
}

void accf_kunit_time_out(struct request_sock *req, u8 timeouts)
{
	if (req->num_timeout == 0 && timeouts)
		atomic_dec(&inet_csk(req->rsk_listener)->icsk_accept_queue.young);
	req->num_timeout = timeouts;
}

u8 accf_kunit_timeouts(const struct request_sock *req)
{
	return req->num_timeout;
}

long accf_kunit_timer_in(const struct request_sock *req)
{
	return timer_pending(&req->rsk_timer) ? (long)(req->rsk_timer.expires - jiffies) : -1;
}

u64 accf_kunit_synack_age_us(const struct request_sock *req)
{
	return tcp_clock_us() - tcp_rsk(req)->snt_synack;
}

u32 accf_kunit_last_tsval(const struct request_sock *req)
{
	return tcp_rsk(req)->snt_tsval_last;
}

u32 accf_kunit_tsval_now(const struct request_sock *req)
{
	return tcp_rsk_tsval(tcp_rsk(req));
}

void accf_kunit_free(struct request_sock *req)
{
	bool is_dropped;

	/* A closed listener has dropped it, and the references of the table and of the timer. */
	is_dropped = refcount_read(&req->rsk_refcnt) == 1;
	timer_delete_sync(&req->rsk_timer);
	if (!is_dropped)
		reqsk_queue_removed(&inet_csk(req->rsk_listener)->icsk_accept_queue, req);
	sock_put(req->rsk_listener);
	kfree(tcp_rsk(req));
}

struct sk_buff *accf_kunit_segment(const struct request_sock *req, u32 len,
				   bool fin, u16 window)
{
	struct sk_buff *skb = alloc_skb(sizeof(struct iphdr) + sizeof(struct tcphdr),
					GFP_KERNEL);
	struct tcphdr *th;

	if (!skb)
		return NULL;
	skb_put_zero(skb, sizeof(struct iphdr));
	skb->protocol = htons(ETH_P_IP);
	skb_reset_network_header(skb);
	skb_pull(skb, sizeof(struct iphdr));
	skb_reset_transport_header(skb);
	th = skb_put_zero(skb, sizeof(*th));
	th->doff = sizeof(*th) / 4;
	th->ack = 1;
	th->fin = fin;
	th->window = htons(window);
	th->seq = htonl(tcp_rsk(req)->rcv_isn + 1);
	th->ack_seq = htonl(tcp_rsk(req)->snt_isn + 1);
	TCP_SKB_CB(skb)->seq = tcp_rsk(req)->rcv_isn + 1;
	TCP_SKB_CB(skb)->end_seq = TCP_SKB_CB(skb)->seq + len + fin;
	TCP_SKB_CB(skb)->ack_seq = tcp_rsk(req)->snt_isn + 1;
	return skb;
}

void accf_kunit_free_segment(struct sk_buff *skb)
{
	kfree_skb(skb);
}

struct job {
	void (*f)(void *arg);
	void *arg;
};

static int work(void *data)
{
	const struct job *job = data;

	while (!kthread_should_stop()) {
		job->f(job->arg);
		cond_resched();
	}
	return 0;
}

int accf_kunit_in_two_threads(void (*f)(void *arg), void *arg, unsigned int ms)
{
	struct job job = { .f = f, .arg = arg };
	struct task_struct *tasks[2];
	int cpu = -1, i, error = 0;

	cpus_read_lock();
	for (i = 0; i < ARRAY_SIZE(tasks); i++) {
		cpu = cpumask_next_wrap(cpu, cpu_online_mask);
		tasks[i] = kthread_run_on_cpu(work, &job, cpu, "accf_kunit/%u");
		if (IS_ERR(tasks[i])) {
			error = PTR_ERR(tasks[i]);
			break;
		}
	}
	cpus_read_unlock();
	if (!error)
		msleep(ms);
	/* Waits until the threads have ended. */
	while (i--)
		kthread_stop(tasks[i]);
	return error;
}
