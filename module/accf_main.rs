// SPDX-License-Identifier: GPL-2.0-only

//! accf: accept filters for TCP listeners.
//!
//! `accept()` on a listener with a filter returns a connection only once it is worth accepting.
//! Until then the connection is a request whose SYN-ACK has been acknowledged, and which is parked.
//! This file lists the filters; [`policy`] decides, and [`net`] makes TCP carry out the decisions.

use kernel::prelude::*;

mod net;
#[allow(unreachable_pub, reason = "the host crate exports these")]
mod policy;

use net::{
    netns::Namespaces,
    rcu::RetireQueue,
    registration::Registration,
    sockopt::Defaults, //
};
use policy::{
    Config,
    Dataready,
    OnClose,
    OnTimeout,
    Parking,
    Timeout, //
};

module! {
    type: Accf,
    name: "accf",
    authors: ["The accf authors"],
    description: "Accept filters for TCP listeners",
    license: "GPL v2",
    alias: ["tcp-ulp-dataready"],
    params: {
        timeout_ms: u32 {
            default: 60000,
            description: "Milliseconds that a silent connection stays parked (0: no limit)",
        },
        on_timeout: u32 {
            default: 0,
            description: "What becomes of it then, or if evicted (0: accept, 1: reset, 2: drop)",
        },
        max_parked: u32 {
            default: 16384,
            description: "Connections that a listener parks at most; one more evicts another one",
        },
        max_parked_netns: u32 {
            default: 262144,
            description: "Connections parked in a network namespace at most (0: no limit)",
        },
    },
}

/// The loaded module: its filters, each registered until it is unloaded.
#[pin_data]
struct Accf {
    #[pin]
    dataready: Registration,
    // Dropped after the filters, whose listeners retire there.
    retire_queue: RetireQueue,
    // Dropped last, as the filters' listeners count in it.
    namespaces: Namespaces,
}

impl kernel::InPlaceModule for Accf {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            let defaults = defaults()?;
            Ok(try_pin_init!(Self {
                namespaces: Namespaces::register()?,
                retire_queue: RetireQueue::new()?,
                dataready <- net::callbacks::ulp::register::<Dataready>(defaults),
            }))
        })
    }
}

/// Returns what the module's parameters ask of every listener.
fn defaults() -> Result<Defaults> {
    let on_timeout = module_parameters::on_timeout.value();
    let max_parked = module_parameters::max_parked.value();

    let Some(on_timeout) = OnTimeout::from_number(on_timeout) else {
        pr_err!("on_timeout={on_timeout} is none of 0 (accept), 1 (reset), 2 (drop)\n");
        return Err(EINVAL);
    };
    if max_parked == 0 {
        pr_err!("max_parked=0: a listener must be able to park at least one connection\n");
        return Err(EINVAL);
    }
    Ok(Defaults {
        config: Config {
            timeout: Timeout::from_millis(module_parameters::timeout_ms.value()),
            max_parked,
            on_timeout,
            parking: Parking::On,
            on_close: OnClose::Accept,
            probe_ms: 0,
        },
        namespace_limit: module_parameters::max_parked_netns.value(),
    })
}
