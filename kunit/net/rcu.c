// SPDX-License-Identifier: GPL-2.0-only
/* The module's own helpers: the suites are linked with the code they test. */
#include "../../module/net/rcu.c"
