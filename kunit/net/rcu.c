// SPDX-License-Identifier: GPL-2.0-only
/* The module's own helpers: the suites are linked with the code they test. */
#include "../../module/net/rcu.c"

#include "../fabricate.h"

void accf_kunit_flush(void)
{
	rcu_barrier();
	flush_workqueue(accf_retire_queue);
}
