// SPDX-License-Identifier: GPL-2.0-only
/* The module's own file: the suites are linked with the code they test. */
#include "../../module/net/inject.c"
