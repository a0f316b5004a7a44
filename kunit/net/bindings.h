/* SPDX-License-Identifier: GPL-2.0-only */
/* What bindgen is shown for the suites. */
#include "../../module/net/bindings.h"
#include "../fabricate.h"
