// SPDX-License-Identifier: GPL-2.0-only
/*
 * Keeping the module in memory for good.
 */

#include "bindings.h"

static atomic_t accf_is_pinned = ATOMIC_INIT(0);

/**
 * accf_pin_module() - Keep the module in memory until the next reboot.
 *
 * A clone of a request may hold pointers into the module without being known
 * to it (see clone.rs). The reference that is taken here is never given back.
 * It is taken once, as the count of references could overflow.
 *
 * When the function returns, the module is kept, whichever CPU has taken the
 * reference.
 *
 * Context: Any. The caller runs on behalf of a listener or a request that
 * keeps the module.
 */
void accf_pin_module(void)
{
	if (atomic_read_acquire(&accf_is_pinned))
		return;
	__module_get(THIS_MODULE);
	if (atomic_xchg(&accf_is_pinned, 1))
		module_put(THIS_MODULE);
}
