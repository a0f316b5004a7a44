// SPDX-License-Identifier: GPL-2.0-only
/*
 * The counter of parked requests of each network namespace.
 */

#include <net/netns/generic.h>

#include "bindings.h"

/**
 * struct accf_net - What a network namespace keeps for the module.
 * @parked: parked requests of all its listeners
 */
struct accf_net {
	atomic_t parked;
};

static unsigned int accf_net_id __read_mostly;

static struct pernet_operations accf_net_ops = {
	.id = &accf_net_id,
	.size = sizeof(struct accf_net),
};

int accf_netns_register(void)
{
	return register_pernet_subsys(&accf_net_ops);
}

void accf_netns_unregister(void)
{
	unregister_pernet_subsys(&accf_net_ops);
}

/* In memory as long as the namespace, and until accf_netns_unregister(). */
struct accf_net *accf_netns(const struct sock *sk)
{
	return net_generic(sock_net(sk), accf_net_id);
}

/**
 * accf_netns_charge() - Count one more parked request.
 * @net: the counters of its namespace
 * @limit: how many there may be; 0 for any number
 *
 * Context: Any.
 * Return: true if there are more than @limit now.
 */
bool accf_netns_charge(struct accf_net *net, u32 limit)
{
	u32 parked = atomic_inc_return(&net->parked);

	return limit && parked > limit;
}

void accf_netns_uncharge(struct accf_net *net)
{
	atomic_dec(&net->parked);
}
