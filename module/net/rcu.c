// SPDX-License-Identifier: GPL-2.0-only
/*
 * The queue of work that waits for a grace period.
 */

#include <linux/workqueue.h>

#include "bindings.h"

static struct workqueue_struct *accf_retire_queue;

/**
 * accf_retire_queue_alloc() - Make the queue, for accf_retire().
 *
 * Context: Process; may sleep. There must be none.
 * Return: 0, or -ENOMEM.
 */
int accf_retire_queue_alloc(void)
{
	accf_retire_queue = alloc_workqueue("accf", WQ_UNBOUND, 0);
	return accf_retire_queue ? 0 : -ENOMEM;
}

/**
 * accf_retire_queue_destroy() - Wait for what is under way, and free the queue.
 *
 * Context: Process; may sleep. accf_retire() must not be called any more.
 */
void accf_retire_queue_destroy(void)
{
	/* What waits for its grace period is not in the queue yet. */
	rcu_barrier();
	destroy_workqueue(accf_retire_queue);
}

/**
 * accf_retire() - Call a function in process context after a grace period.
 * @work: memory for this, which the function may free
 * @func: the function
 *
 * Context: Any. The queue must be there until the function has returned.
 */
void accf_retire(struct rcu_work *work, work_func_t func)
{
	INIT_RCU_WORK(work, func);
	queue_rcu_work(accf_retire_queue, work);
}
