// SPDX-License-Identifier: GPL-2.0-only
/* The other members of a listener's SO_REUSEPORT group. */

#include <net/sock_reuseport.h>

#include "bindings.h"

/* Would its requests go to another listener of its group, should it stop? Under RCU. */
static bool accf_migrates(const struct sock *sk, const struct sock_reuseport *group)
{
	return READ_ONCE(sock_net(sk)->ipv4.sysctl_tcp_migrate_req) || rcu_access_pointer(group->prog);
}

/* Has its group a listener now that would take it, as its own has stopped (reuseport_migrate_sock())? */
bool accf_req_can_migrate(const struct request_sock *req)
{
	const struct sock *sk = req->rsk_listener;
	const struct sock_reuseport *group;
	bool can_migrate;

	rcu_read_lock();
	group = rcu_dereference(sk->sk_reuseport_cb);
	/* Written plainly, under a lock that is not exported. */
	can_migrate = group && data_race(READ_ONCE(group->num_socks)) && accf_migrates(sk, group);
	rcu_read_unlock();
	return can_migrate;
}

/*
 * What has its listener done since its next sequence number was @write_seq? Nothing moves that of a listener but
 * tcp_disconnect(), which is shutdown() among others, and by the same each time; it sets rcv_mss right after that.
 * inet_csk_listen_start() clears rcv_mss, and releases all of that with TCP_LISTEN. (Whoever looks between the two writes takes
 * a listener that was shut down for one that has listened again.)
 *
 * tcp_abort() alone moves nothing, and leaves sk_shutdown set; but that is so, too, for the moment before close() stops the
 * listener, and if shutdown() was called before listen(). That it has listened again after tcp_abort() is not told.
 */
u32 accf_req_listener_since(const struct request_sock *req, u32 write_seq)
{
	const struct sock *sk = req->rsk_listener;
	const struct sock_reuseport *group;
	bool listened = inet_sk_state_load(sk) == TCP_LISTEN;
	u32 moved = READ_ONCE(tcp_sk(sk)->write_seq) - write_seq;
	bool listens, has_ended;
	u32 since = 0;

	/* What has come since it was moved, or was not yet. */
	smp_rmb();
	listens = inet_sk_state_load(sk) == TCP_LISTEN;
	has_ended = READ_ONCE(sk->sk_shutdown);
	if (!listened || !listens || moved)
		since |= ACCF_HAS_STOPPED;
	if (!listened && listens)
		since |= ACCF_LISTENED_AGAIN;
	if (moved) {
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

static bool accf_may_hold_clones(const struct sock *member)
{
	return !data_race(sock_flag(member, SOCK_DEAD)) ||
	       READ_ONCE(inet_csk(member)->icsk_accept_queue.rskq_defer_accept);
}

/*
 * Once @sk has stopped, the kernel makes connections of its requests at any other listener of its group, and puts copies into
 * that one's accept queue (inet_csk_complete_hashdance()). Who is there that would take them, and does it keep the module until
 * they are gone? @peer_restores_clones tells whether a listener does. One that was closed has none in its queue: it is orphaned after that
 * has been emptied, and when nobody is in accept() (__tcp_close()). With TCP_DEFER_ACCEPT, one that a request's timer has copied
 * may be half open there, though.
 *
 * Who stops while it may migrate stays in the group until it is freed, or listens again, or is given a program of its own
 * (reuseport_stop_listen_sock(), reuseport_resurrect()).
 *
 * The group's lock is not exported. Members move towards the beginning of those that listen, and towards the end of those that
 * have stopped, and from the ones to the others (__reuseport_detach_sock() and the like). Who goes the other way misses nobody
 * but who moves from the ones to the others meanwhile; where the numbers have changed, the answer is that there may be somebody.
 * (They are the same, too, if one member stops and another one listens again at that very moment.) That holds where the
 * processor and the compiler leave the kernel's writes in order, as a member's place is written before it is counted, and
 * nothing orders the two; elsewhere nobody is looked at, and whoever is there may be somebody.
 *
 * Of all this the kernel marks but the writes of num_closed_socks.
 */
u32 accf_reuseport_peers(const struct sock *sk, bool (*peer_restores_clones)(const struct sock *sk))
{
	const struct sock_reuseport *group;
	u16 listening, stopped;
	int attempts = 3;
	u32 around = 0;

	rcu_read_lock();
	/* The request's leaving, and then the group. */
	smp_rmb();
	group = rcu_dereference(sk->sk_reuseport_cb);
	if (!group)
		goto out;
	do {
		const struct sock *member;
		int i;

		around = ACCF_IN_GROUP;
		listening = data_race(READ_ONCE(group->num_socks));
		stopped = READ_ONCE(group->num_closed_socks);
		if (!IS_ENABLED(CONFIG_X86)) {
			if (listening + stopped > 1 || (listening && data_race(READ_ONCE(group->socks[0])) != sk))
				around |= ACCF_MAY_HOLD_CLONES;
			goto out;
		}
		/* As in reuseport_select_sock(): pairs with __reuseport_add_sock(). */
		smp_rmb();
		for (i = listening - 1; i >= 0; i--) {
			member = data_race(READ_ONCE(group->socks[i]));
			if (member == sk) {
				/* It was moved here, to another group, without listening (reuseport_attach_prog()). */
				if (inet_sk_state_load(sk) != TCP_LISTEN)
					around |= ACCF_MAY_HOLD_CLONES;
				continue;
			}
			if (!member)
				around |= ACCF_MAY_HOLD_CLONES;
			else if (peer_restores_clones(member))
				around |= ACCF_RESTORES_CLONES;
			else if (accf_may_hold_clones(member))
				around |= ACCF_MAY_HOLD_CLONES;
		}
		smp_rmb();
		/* Anew: who has stopped since is among them. */
		i = group->max_socks - READ_ONCE(group->num_closed_socks);
		smp_rmb();
		for (; i < group->max_socks; i++) {
			member = data_race(READ_ONCE(group->socks[i]));
			if (member == sk)
				continue;
			if (!member || (!peer_restores_clones(member) && accf_may_hold_clones(member)))
				around |= ACCF_MAY_HOLD_CLONES;
		}
		smp_rmb();
		if (listening == data_race(READ_ONCE(group->num_socks)) &&
		    stopped == READ_ONCE(group->num_closed_socks))
			goto out;
	} while (--attempts);
	around |= ACCF_MAY_HOLD_CLONES;
out:
	rcu_read_unlock();
	return around;
}

bool accf_is_in_group(const struct sock *sk)
{
	return rcu_access_pointer(sk->sk_reuseport_cb);
}

/* Is it to share its port, and in no group, as it has left it? */
bool accf_has_left_group(const struct sock *sk)
{
	return data_race((bool)sk->sk_reuseport) && !accf_is_in_group(sk);
}
