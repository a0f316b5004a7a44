// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a listener's SO_REUSEPORT group tells of its requests, and of clones of them.
 *
 * The group's lock, reuseport_lock, is not exported. Everything here is read
 * under RCU without it. Of the fields that are read, the kernel marks only its
 * writes of num_closed_socks, hence the data_race().
 */

#include <linux/filter.h>
#include <net/sock_reuseport.h>

#include "bindings.h"

/**
 * accf_migrates() - Check whether a listener that stops hands its requests over.
 * @sk: the listener
 * @group: its group
 *
 * Context: RCU reader.
 * Return: true if another listener of the group would get them
 *         (inet_csk_listen_stop(), reuseport_migrate_sock()).
 */
static bool accf_migrates(const struct sock *sk, const struct sock_reuseport *group)
{
	return READ_ONCE(sock_net(sk)->ipv4.sysctl_tcp_migrate_req) ||
	       rcu_access_pointer(group->prog);
}

/**
 * accf_req_can_migrate() - Check whether a request would be handed over now.
 * @req: the request, with a listener
 *
 * Context: Any.
 * Return: true if the listener's group has a listener that would take the
 *         request if its own had stopped (reuseport_migrate_sock()).
 */
bool accf_req_can_migrate(const struct request_sock *req)
{
	const struct sock *sk = req->rsk_listener;
	const struct sock_reuseport *group;
	bool can_migrate;

	rcu_read_lock();
	group = rcu_dereference(sk->sk_reuseport_cb);
	can_migrate = group && data_race(READ_ONCE(group->num_socks)) &&
		      accf_migrates(sk, group);
	rcu_read_unlock();
	return can_migrate;
}

/**
 * accf_has_taker() - Check whether another listener gets a stopped listener's requests.
 * @sk: the listener
 *
 * As reuseport_migrate_sock() decides, but for what the group's program says of
 * the single request. Unlike accf_req_can_migrate() this is not on the safe side
 * for clones: a program of another kind hands nothing over.
 *
 * Context: Any.
 */
bool accf_has_taker(const struct sock *sk)
{
	const struct sock_reuseport *group;
	const struct bpf_prog *prog;
	bool has_taker = false;

	rcu_read_lock();
	group = rcu_dereference(sk->sk_reuseport_cb);
	if (group && data_race(READ_ONCE(group->num_socks))) {
		prog = rcu_dereference(group->prog);
		has_taker = READ_ONCE(sock_net(sk)->ipv4.sysctl_tcp_migrate_req) ||
			    (prog &&
			     prog->expected_attach_type == BPF_SK_REUSEPORT_SELECT_OR_MIGRATE);
	}
	rcu_read_unlock();
	return has_taker;
}

/**
 * accf_req_listener_since() - Tell what a request's listener did since then.
 * @req: the request, with a listener
 * @write_seq: the lower 24 bits of the listener's next sequence number then
 *
 * Nothing moves the sequence number of a listener but tcp_disconnect(), which
 * shutdown() calls, and by the same amount each time; tcp_disconnect() sets
 * rcv_mss right after that. inet_csk_listen_start() clears rcv_mss, and
 * TCP_LISTEN is published after all of that. Each time is 2 further, as nothing
 * is ever sent: 24 bits are for 8 million times. A caller that looks between the
 * two writes of tcp_disconnect() takes a listener that was shut down for one
 * that has listened again.
 *
 * tcp_abort() moves nothing, and leaves sk_shutdown set. sk_shutdown is set as
 * well in the moment before close() stops the listener, and where shutdown()
 * was called before listen(). That a listener has listened again after
 * tcp_abort() is not told.
 *
 * Context: Any.
 * Return: ACCF_HAS_STOPPED, ACCF_LISTENED_AGAIN.
 */
u32 accf_req_listener_since(const struct request_sock *req, u32 write_seq)
{
	const struct sock *sk = req->rsk_listener;
	const struct sock_reuseport *group;
	bool listened = inet_sk_state_load(sk) == TCP_LISTEN;
	u32 moved = (READ_ONCE(tcp_sk(sk)->write_seq) - write_seq) & ACCF_WRITE_SEQ_MASK;
	bool listens, has_ended;
	u32 since = 0;

	/* B10. Read the state again after the number: it may have changed before. */
	smp_rmb();
	listens = inet_sk_state_load(sk) == TCP_LISTEN;
	has_ended = READ_ONCE(sk->sk_shutdown);
	if (!listened || !listens || moved)
		since |= ACCF_HAS_STOPPED;
	if (!listened && listens)
		since |= ACCF_LISTENED_AGAIN;
	if (moved) {
		/* B10. Pairs with the release of TCP_LISTEN in inet_csk_listen_start(). */
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

/*
 * A member that was closed holds no clone in its accept queue: it is orphaned
 * after the queue has been emptied, when no task is in accept()
 * (__tcp_close()). With TCP_DEFER_ACCEPT, a clone that a SYN-ACK timer has
 * made may still be half open there.
 */
static bool accf_may_hold_clones(const struct sock *member)
{
	return !data_race(sock_flag(member, SOCK_DEAD)) ||
	       READ_ONCE(inet_csk(member)->icsk_accept_queue.rskq_defer_accept);
}

/* The flags of one member that listens. */
static u32 accf_listening_peer(const struct sock *sk, const struct sock *member,
			       bool (*restores_clones)(const struct sock *sk))
{
	if (member == sk) {
		/* reuseport_attach_prog() moved it to another group without listen(). */
		return inet_sk_state_load(sk) == TCP_LISTEN ? 0 : ACCF_MAY_HOLD_CLONES;
	}
	if (!member)
		return ACCF_MAY_HOLD_CLONES;
	if (restores_clones(member))
		return ACCF_RESTORES_CLONES;
	return accf_may_hold_clones(member) ? ACCF_MAY_HOLD_CLONES : 0;
}

/* The flags of one member that has stopped. */
static u32 accf_stopped_peer(const struct sock *sk, const struct sock *member,
			     bool (*restores_clones)(const struct sock *sk))
{
	if (member == sk)
		return 0;
	if (member && (restores_clones(member) || !accf_may_hold_clones(member)))
		return 0;
	return ACCF_MAY_HOLD_CLONES;
}

/**
 * accf_reuseport_peers() - Tell whether peers of a listener may hold clones.
 * @sk: the listener
 * @restores_clones: tells of a member whether it keeps the module until no
 *                   clone of a request is left there
 *
 * Once @sk has stopped, the kernel makes connections of its requests at any
 * other listener of the group, and puts clones into that listener's accept
 * queue (inet_csk_complete_hashdance()).
 *
 * A listener that stops while it may migrate stays in the group until it is
 * freed, listens again, or gets a program of its own
 * (reuseport_stop_listen_sock(), reuseport_resurrect()).
 *
 * Members that listen stand at the beginning of socks[] and members that have
 * stopped at its end. A member moves towards the beginning among those that
 * listen, towards the end among those that have stopped, and from the former
 * to the latter (__reuseport_detach_sock() and its neighbours). The loops run
 * the other way, so they miss only a member that moves from the former to the
 * latter meanwhile. Where the counts have changed, the group is read again;
 * after three attempts the answer is ACCF_MAY_HOLD_CLONES. (The counts are
 * also the same if one member stops and another one listens again at that very
 * moment.)
 *
 * This holds where the processor and the compiler keep the kernel's writes in
 * order, as a member's slot is written before it is counted, and nothing
 * orders the two. Elsewhere than on x86 every peer counts as
 * ACCF_MAY_HOLD_CLONES.
 *
 * Context: Any. @restores_clones is called as an RCU reader.
 * Return: ACCF_IN_GROUP, ACCF_RESTORES_CLONES, ACCF_MAY_HOLD_CLONES.
 */
u32 accf_reuseport_peers(const struct sock *sk,
			 bool (*restores_clones)(const struct sock *sk))
{
	const struct sock_reuseport *group;
	u16 listening, stopped;
	int attempts = 3;
	u32 peers = 0;
	int i;

	rcu_read_lock();
	/* B11. Read the group after the request has left the table. */
	smp_rmb();
	group = rcu_dereference(sk->sk_reuseport_cb);
	if (!group)
		goto out;
	do {
		peers = ACCF_IN_GROUP;
		listening = data_race(READ_ONCE(group->num_socks));
		stopped = READ_ONCE(group->num_closed_socks);
		if (!IS_ENABLED(CONFIG_X86)) {
			if (listening + stopped > 1 ||
			    (listening && data_race(READ_ONCE(group->socks[0])) != sk))
				peers |= ACCF_MAY_HOLD_CLONES;
			goto out;
		}
		/* B11. Pairs with smp_wmb() in __reuseport_add_sock(): slot, num_socks. */
		smp_rmb();
		for (i = listening - 1; i >= 0; i--)
			peers |= accf_listening_peer(sk, data_race(READ_ONCE(group->socks[i])),
						     restores_clones);
		/*
		 * B11. Pairs with __reuseport_detach_sock(), which writes a slot that was
		 * read above, before __reuseport_add_closed_sock(): num_closed_socks.
		 */
		smp_rmb();
		/* Read the count again: it includes members that have stopped since. */
		i = group->max_socks - READ_ONCE(group->num_closed_socks);
		/* B11. Pairs with __reuseport_add_closed_sock(): slot, num_closed_socks. */
		smp_rmb();
		for (; i < group->max_socks; i++)
			peers |= accf_stopped_peer(sk, data_race(READ_ONCE(group->socks[i])),
						   restores_clones);
		/*
		 * B11. Pairs with __reuseport_detach_sock(): slot, num_socks; and with
		 * __reuseport_detach_closed_sock(): slot, num_closed_socks.
		 */
		smp_rmb();
		if (listening == data_race(READ_ONCE(group->num_socks)) &&
		    stopped == READ_ONCE(group->num_closed_socks))
			goto out;
	} while (--attempts);
	peers |= ACCF_MAY_HOLD_CLONES;
out:
	rcu_read_unlock();
	return peers;
}

bool accf_is_in_group(const struct sock *sk)
{
	return rcu_access_pointer(sk->sk_reuseport_cb);
}

bool accf_has_left_group(const struct sock *sk)
{
	return data_race((bool)sk->sk_reuseport) && !accf_is_in_group(sk);
}
