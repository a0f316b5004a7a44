// SPDX-License-Identifier: GPL-2.0-only

//! The counts of parked requests: in the listener, its SYN backlog and its network namespace.

use kernel::prelude::*;

#[kunit_tests(accf_account)]
mod tests {
    use kernel::prelude::*;

    use crate::{
        fabricate::{
            register,
            register_with,
            TestListener,
            TestRequest,
            DEFAULTS, //
        },
        net::sockopt::Defaults,
        policy::{
            Bypass,
            Config,
            End,
            Parking,
            Timeout, //
        }, //
    };

    /// A number of requests above the share of a backlog of 128 that parked ones may keep.
    const MANY: usize = 24;
    /// The largest such share: an eighth of the backlog.
    const MAX_SHARE: i32 = 16;

    fn requests(listener: &TestListener, count: usize) -> Result<KVec<TestRequest>> {
        let mut requests = KVec::new();
        for _ in 0..count {
            requests.push(TestRequest::new(listener, 0)?, GFP_KERNEL)?;
        }
        Ok(requests)
    }

    #[test]
    fn parked_requests_leave_the_backlog_and_return_to_it() -> Result {
        let registration = register(Timeout::Never)?;
        let listener = TestListener::filtered()?;
        let requests = requests(&listener, MANY)?;
        assert!(listener.half_open() == MANY as i32);
        assert!(listener.young() == MANY as i32);
        for request in &requests {
            assert!(request.park(1)?);
        }
        assert!(listener.half_open() > 0);
        assert!(listener.half_open() <= MAX_SHARE);
        assert!(listener.young() == 0);

        // They end one after another, in the reverse order, by a connection or by the kernel.
        for (i, request) in requests.iter().rev().enumerate() {
            if i % 2 == 0 {
                request.complete()?;
            } else {
                request.destroy();
            }
        }
        // The kernel takes them off these counts when they are dropped.
        assert!(listener.half_open() == MANY as i32);
        assert!(listener.young() == MANY as i32);
        let stats = listener.stats()?;
        assert!(stats.parked == 0);
        assert!(stats.parked_total == MANY as u64);
        assert!(stats.ended(End::Data) == MANY as u64 / 2);
        assert!(stats.ended(End::Aborted) == MANY as u64 / 2);
        drop(requests);
        assert!(listener.half_open() == 0);
        assert!(listener.young() == 0);
        drop(listener);
        drop(registration);
        Ok(())
    }

    #[test]
    fn a_paused_listener_parks_nothing() -> Result {
        let registration = register(Timeout::Never)?;
        let listener = TestListener::filtered()?;
        let requests = requests(&listener, 2)?;
        let set = |parking| {
            listener.set_config(Config {
                parking,
                ..DEFAULTS.config
            })
        };
        set(Parking::Paused)?;
        assert!(!requests[0].park(1)?);
        let stats = listener.stats()?;
        assert!(stats.parked_total == 0);
        assert!(stats.bypassed(Bypass::Paused) == 1);
        // What was counted for it is undone.
        assert!(listener.half_open() == 2);
        assert!(listener.young() == 2);
        set(Parking::On)?;
        assert!(requests[1].park(1)?);
        requests[1].complete()?;
        assert!(listener.stats()?.bypassed(Bypass::Paused) == 1);
        drop(requests);
        drop(listener);
        drop(registration);
        Ok(())
    }

    #[test]
    fn a_request_that_was_not_young_stays_so() -> Result {
        let registration = register(Timeout::Never)?;
        let listener = TestListener::filtered()?;
        let request = TestRequest::new(&listener, 0)?;
        request.time_out(1);
        assert!(listener.young() == 0);
        assert!(request.park(1)?);
        assert!(listener.young() == 0);
        request.complete()?;
        assert!(listener.young() == 0);
        drop(request);
        assert!(listener.young() == 0);
        drop(listener);
        drop(registration);
        Ok(())
    }

    #[test]
    fn timeouts_while_parked_leave_the_young_count_exact() -> Result {
        let registration = register(Timeout::Never)?;
        let listener = TestListener::filtered()?;
        let request = TestRequest::new(&listener, 0)?;
        assert!(request.park(1)?);
        for _ in 0..3 {
            // The timer's handler calls `send_synack`, and then counts the timeout.
            request.stop_timer();
            assert!(request.send_synack() != 0);
            request.time_out(request.timeouts() + 1);
            assert!(listener.young() == 0);
        }
        assert!(listener.stats()?.synack_suppressed == 3);
        request.complete()?;
        drop(request);
        assert!(listener.young() == 0);
        assert!(listener.half_open() == 0);
        drop(listener);
        drop(registration);
        Ok(())
    }

    #[test]
    fn a_request_that_cannot_be_parked_is_counted_and_changes_nothing() -> Result {
        let registration = register(Timeout::Never)?;
        let listener = TestListener::filtered()?;
        let request = TestRequest::new(&listener, 0)?;
        request.stop_timer();
        assert!(!request.park(1)?);
        let stats = listener.stats()?;
        assert!(stats.parked_total == 0);
        assert!(stats.bypassed(Bypass::Other) == 1);
        assert!(listener.half_open() == 1);
        assert!(listener.young() == 1);
        drop(request);
        drop(listener);
        drop(registration);
        Ok(())
    }

    #[test]
    fn a_namespace_has_a_limit_of_its_own() -> Result {
        let registration = register_with(Defaults {
            namespace_limit: 2,
            ..DEFAULTS
        })?;
        let (first, second) = (TestListener::filtered()?, TestListener::filtered()?);
        let requests = requests(&first, 2)?;
        assert!(requests[0].park(1)? && requests[1].park(1)?);
        let third = TestRequest::new(&second, 0)?;
        assert!(!third.park(1)?);
        assert!(third.has_original_ops());
        assert!(second.stats()?.bypassed(Bypass::NamespaceLimit) == 1);

        // Once one of the others is complete, there is room.
        requests[0].complete()?;
        assert!(third.park(1)?);
        third.complete()?;
        requests[1].complete()?;
        drop(third);
        drop(requests);
        drop(first);
        drop(second);
        drop(registration);
        Ok(())
    }

    #[test]
    fn closing_a_listener_restores_the_counts() -> Result {
        let registration = register_with(Defaults {
            namespace_limit: 3,
            ..DEFAULTS
        })?;
        for _ in 0..3 {
            let listener = TestListener::filtered()?;
            let requests = requests(&listener, 3)?;
            for request in &requests {
                // Fails in the second round if requests of the closed listener are still counted.
                assert!(request.park(1)?);
            }
            drop(listener);
            drop(requests);
        }
        drop(registration);
        Ok(())
    }

    #[test]
    fn requests_that_are_counted_by_source_leave_like_others() -> Result {
        let registration = register_with(Defaults {
            config: Config {
                max_parked: MANY as u32,
                ..DEFAULTS.config
            },
            ..DEFAULTS
        })?;
        let listener = TestListener::filtered()?;
        for _ in 0..2 {
            let requests = requests(&listener, MANY)?;
            for request in &requests {
                assert!(request.park(1)?);
            }
            // Two are counted with each one above the half.
            assert!(listener.counted_by_source()? == MANY as u32);
            // A bare ACK of a request that is counted is one like any other.
            assert!(requests[0].park(2)?);
            assert!(requests[0].last_window() == Some(2));
            for i in 0..MANY {
                // In no order.
                let request = &requests[i * 7 % MANY];
                match i % 3 {
                    0 => request.complete()?,
                    1 => {
                        request.stop_timer();
                        request.fall_back()?;
                    }
                    _ => request.destroy(),
                }
                let left = (MANY - i - 1) as u32;
                assert!(listener.counted_by_source()? == if left > 1 { left } else { 0 });
            }
            drop(requests);
        }
        let stats = listener.stats()?;
        assert!(stats.parked == 0);
        assert!(stats.parked_total == 2 * MANY as u64);
        for end in [End::Data, End::Fallback, End::Aborted] {
            assert!(stats.ended(end) == 2 * MANY as u64 / 3);
        }
        assert!(listener.half_open() == 0);
        assert!(listener.young() == 0);

        // A closed listener leaves none that is counted.
        let requests = requests(&listener, MANY)?;
        for request in &requests {
            assert!(request.park(1)?);
        }
        drop(listener);
        for request in &requests {
            assert!(request.has_original_ops());
        }
        drop(requests);
        drop(registration);
        Ok(())
    }

    #[test]
    fn a_max_parked_of_zero_means_the_default() -> Result {
        let registration = register(Timeout::Never)?;
        let listener = TestListener::filtered()?;
        listener.set_config(Config {
            max_parked: 0,
            ..DEFAULTS.config
        })?;
        assert!(listener.config()?.max_parked == DEFAULTS.config.max_parked);
        drop(listener);
        drop(registration);
        Ok(())
    }
}
