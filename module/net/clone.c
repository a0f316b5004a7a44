// SPDX-License-Identifier: GPL-2.0-only
/*
 * Keeping the module in memory for good, and saying so.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/moduleparam.h>
#include <linux/sysfs.h>

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
	if (atomic_xchg(&accf_is_pinned, 1)) {
		module_put(THIS_MODULE);
		return;
	}
	pr_warn("a request may have been cloned out of reach: unloading needs a reboot\n");
}

static int accf_set_pinned(const char *val, const struct kernel_param *kp)
{
	return -EPERM;
}

static int accf_get_pinned(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%c\n", atomic_read(&accf_is_pinned) ? 'Y' : 'N');
}

static const struct kernel_param_ops accf_pinned_ops = {
	.set = accf_set_pinned,
	.get = accf_get_pinned,
};

module_param_cb(pinned, &accf_pinned_ops, NULL, 0444);
MODULE_PARM_DESC(pinned, "Read only: Y if the module cannot be unloaded until the next reboot");
