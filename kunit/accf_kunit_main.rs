// SPDX-License-Identifier: GPL-2.0-only

//! KUnit suites for the edges of accf that a client cannot reach: requests and segments are
//! fabricated, listeners are real. The suites run when this module is loaded. The sources of accf
//! are linked in.

use kernel::prelude::*;

#[path = "../module/net/mod.rs"]
mod net;
#[allow(unreachable_pub, reason = "the host crate exports these")]
#[path = "../module/policy/mod.rs"]
mod policy;

mod fabricate;
mod test_account;
mod test_listener;
mod test_policy;
mod test_registration;
mod test_reqsk_ops;
#[cfg(CONFIG_KCSAN)]
mod test_sanitizer;
mod test_tcp_segment;

module! {
    type: AccfKunit,
    name: "accf_kunit",
    authors: ["The accf authors"],
    description: "KUnit suites for accf",
    license: "GPL v2",
}

/// The loaded module. KUnit finds the suites in its `.kunit_test_suites` section, and runs them
/// once this is initialised.
struct AccfKunit {
    _retire_queue: net::rcu::RetireQueue,
    _namespaces: net::netns::Namespaces,
}

impl kernel::Module for AccfKunit {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Self {
            _retire_queue: net::rcu::RetireQueue::new()?,
            _namespaces: net::netns::Namespaces::register()?,
        })
    }
}
