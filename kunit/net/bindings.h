/* SPDX-License-Identifier: GPL-2.0-only */
/* The input of bindgen for the suites. */
#include "../../module/net/bindings.h"
#include "../fabricate.h"
