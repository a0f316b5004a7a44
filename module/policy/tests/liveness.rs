// SPDX-License-Identifier: GPL-2.0-only

//! When a silent client is probed, and when it is given up.

use accf_policy::{
    timeouts_while_probed,
    Config,
    Nanos,
    OnClose,
    OnTimeout,
    Parking,
    Probing,
    Silence,
    Timeout, //
};
use proptest::prelude::*;

fn config(probe_ms: u32) -> Config {
    Config {
        timeout: Timeout::Never,
        max_parked: 7,
        on_timeout: OnTimeout::Accept,
        parking: Parking::On,
        on_close: OnClose::Accept,
        probe_ms,
    }
}

proptest! {
    /// A client gets as many probes as TCP_KEEPCNT says, and is given up after the last one.
    #[test]
    fn a_client_is_given_up_after_the_last_probe(probes: u8) {
        let time = Nanos::from_millis(5);
        let probing = Probing { idle: time, interval: time, probes };
        let sent = (1..=u8::MAX)
            .take_while(|&silences| probing.on_silence(silences) == Silence::Probe)
            .count();
        prop_assert_eq!(sent, usize::from(probes.min(u8::MAX - 1)));
    }

    /// Without `probe_ms`, the socket's options count; with it, it alone does, but for the number.
    #[test]
    fn probe_ms_takes_the_place_of_the_socket_options(
        idle: u32,
        interval: u32,
        probes: u8,
        is_on: bool,
        probe_ms in 1_u32..,
    ) {
        let keepalive = Probing {
            idle: Nanos::from_millis(idle),
            interval: Nanos::from_millis(interval),
            probes,
        };
        let by_socket = Probing::of(&config(0), keepalive, is_on);
        prop_assert_eq!(by_socket, is_on.then_some(keepalive));
        let time = Nanos::from_millis(probe_ms);
        let by_config = Probing { idle: time, interval: time, probes };
        prop_assert_eq!(Probing::of(&config(probe_ms), keepalive, is_on), Some(by_config));
    }

    /// A request whose client is probed shows fewer timeouts than those for which TCP drops it,
    /// also if TCP allows two only; and no more than it has had.
    #[test]
    fn a_probed_request_is_not_dropped_for_its_timeouts(timeouts: u8, max_timeouts: u8) {
        match timeouts_while_probed(timeouts, max_timeouts) {
            Some(kept) => prop_assert!(kept < max_timeouts.min(2) && kept <= timeouts),
            None => prop_assert!(max_timeouts == 0 || (max_timeouts == 1 && timeouts > 0)),
        }
    }
}
