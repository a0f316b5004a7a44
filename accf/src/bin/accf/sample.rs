// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sample listeners for tests.

use std::num::NonZeroU32;
use std::time::Duration;

use accf::{Listener, OnClose, OnTimeout, Source, State, DATAREADY};

/// Returns a listener with the default settings that no client has connected to.
pub(crate) fn unused() -> Listener {
    let mut listener = Listener::new("192.0.2.1:443".parse().unwrap(), DATAREADY);
    listener.cookie = 1;
    listener
}

/// Returns a listener whose parking is paused.
pub(crate) fn paused() -> Listener {
    let mut listener = unused();
    listener.config.state = State::Paused;
    listener.stats.bypass_paused = 4;
    listener
}

/// Returns a listener whose counters are all different and none zero.
pub(crate) fn busy() -> Listener {
    let mut listener = Listener::new("[::]:8080".parse().unwrap(), DATAREADY);
    listener.cookie = 2;
    listener.uid = 1000;
    listener.inode = 4711;
    listener.accept_queue = 2;
    listener.backlog = 4096;
    listener.config.timeout = Some(Duration::from_millis(1500));
    listener.config.max_parked = NonZeroU32::new(2000);
    listener.config.on_timeout = OnTimeout::Reset;
    listener.config.on_close = OnClose::Reset;
    listener.config.probe = Some(Duration::from_secs(200));
    let stats = &mut listener.stats;
    stats.parked = 12;
    stats.half_open = 3;
    stats.half_open_young = 1;
    stats.released_data = 1_100;
    stats.released_fin = 7;
    stats.timeout_accept = 50;
    stats.timeout_reset = 60;
    stats.timeout_drop = 70;
    stats.evicted = 8;
    stats.aborted = 9;
    stats.fallback = 10;
    stats.released_paused = 11;
    stats.closed_reset = 13;
    stats.died = 16;
    stats.parked_total = stats.accounted();
    stats.synack_suppressed = 90;
    stats.bypass_syncookie = 21;
    stats.bypass_fastopen = 22;
    stats.bypass_abort_on_overflow = 23;
    stats.bypass_accept_queue_full = 24;
    stats.bypass_no_memory = 25;
    stats.bypass_namespace_limit = 26;
    stats.bypass_signed = 27;
    stats.bypass_other = 28;
    stats.bypass_paused = 29;
    stats.closed_reset_unparked = 3;
    stats.evicted_greediest = 5;
    stats.released_late = 6;
    stats.overflow_dropped = 14;
    stats.probes = 15;
    let source = |address: &str, parked| Some(Source::new(address.parse().unwrap(), parked));
    stats.sources[0] = source("198.51.100.7", 6);
    stats.sources[1] = source("2001:db8:1:2::", 4);
    stats.wait_log2[0] = 100;
    stats.wait_log2[1] = 1_000;
    stats.wait_log2[3] = 7;
    listener
}
