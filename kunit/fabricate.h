/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Real listeners, and fabricated requests and segments for them.
 */
#ifndef ACCF_KUNIT_FABRICATE_H
#define ACCF_KUNIT_FABRICATE_H

struct request_sock;
struct request_sock_ops;
struct sk_buff;
struct sock;
struct socket;
struct tcp_request_sock_ops;

/* Makes a listener on any address and port. NULL if that fails. */
struct socket *accf_kunit_listener(int family);
struct sock *accf_kunit_sk(struct socket *sock);
int accf_kunit_attach(struct socket *sock, const char *name);
/*
 * Makes a listener look like one of a namespace that has the same pernet data
 * as the first. Returns false if there is no memory.
 */
bool accf_kunit_leave_init_net(struct socket *sock);
/* Makes a listener hold its namespace, or not. */
void accf_kunit_hold_net(struct socket *sock, bool holds);
/* Undoes both. */
void accf_kunit_return_to_init_net(struct socket *sock);
/* Closes a listener, and waits until its requests are settled. */
void accf_kunit_close(struct socket *sock);
/* Waits until closed listeners are dropped. */
void accf_kunit_flush(void);

/*
 * Makes a request as it is in the table of connections after its SYN-ACK was
 * sent @age_us ago: three references, hashed, its SYN-ACK timer set to a second
 * from now, counted as young.
 */
struct request_sock *accf_kunit_request(struct sock *listener,
					const struct request_sock_ops *ops,
					const struct tcp_request_sock_ops *tcp_ops,
					u32 age_us);
/* Clones @req as inet_reqsk_clone() does. */
struct request_sock *accf_kunit_clone(const struct request_sock *req);
void accf_kunit_unhash(struct request_sock *req);
/* Makes @req look as if its last reference had just been put. */
void accf_kunit_kill(struct request_sock *req);
unsigned int accf_kunit_references(const struct request_sock *req);
void accf_kunit_stop_timer(struct request_sock *req);
void accf_kunit_set_timer(struct request_sock *req, unsigned long ticks);
void accf_kunit_time_out(struct request_sock *req, u8 timeouts);
u8 accf_kunit_timeouts(const struct request_sock *req);
long accf_kunit_timer_in(const struct request_sock *req);
u64 accf_kunit_synack_age_us(const struct request_sock *req);
u32 accf_kunit_last_tsval(const struct request_sock *req);
u32 accf_kunit_tsval_now(const struct request_sock *req);
void accf_kunit_free(struct request_sock *req);

/*
 * Makes the reply to the SYN-ACK of @req, with @len bytes of data, and with a
 * FIN if @fin.
 */
struct sk_buff *accf_kunit_segment(const struct request_sock *req, u32 len,
				   bool fin, u16 window);
void accf_kunit_free_segment(struct sk_buff *skb);

/*
 * Runs two threads, each on a CPU of its own where there are two, which call
 * @f with @arg in a loop for @ms milliseconds. Sleeps. Returns 0 or an error.
 */
int accf_kunit_in_two_threads(void (*f)(void *arg), void *arg, unsigned int ms);

#endif /* ACCF_KUNIT_FABRICATE_H */
