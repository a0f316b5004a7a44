// SPDX-License-Identifier: GPL-2.0-only

//! What is counted, where, and that it is counted back.

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
            Timeout, //
        }, //
    };

    /// More than any machine's reserve in a backlog of 128.
    const MANY: usize = 24;
    /// That reserve: an eighth of the backlog.
    const MOST: i32 = 16;

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
        assert!(listener.half_open() <= MOST);
        assert!(listener.young() == 0);

        // By a connection, and by the kernel: one after another, in another order than they came.
        for (i, request) in requests.iter().rev().enumerate() {
            if i % 2 == 0 {
                request.complete()?;
            } else {
                request.destroy();
            }
        }
        // The kernel counts them off when they are dropped.
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
    fn who_was_not_young_does_not_become_it() -> Result {
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
            // The timer's handler asks, and then counts.
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
    fn what_could_not_be_parked_is_counted_and_changes_nothing() -> Result {
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
        let late = TestRequest::new(&second, 0)?;
        assert!(!late.park(1)?);
        assert!(late.has_original_ops());
        assert!(second.stats()?.bypassed(Bypass::NamespaceLimit) == 1);

        // Once one of them is gone, there is room.
        requests[0].complete()?;
        assert!(late.park(1)?);
        late.complete()?;
        requests[1].complete()?;
        drop(late);
        drop(requests);
        drop(first);
        drop(second);
        drop(registration);
        Ok(())
    }

    #[test]
    fn a_closed_listener_has_counted_everything_back() -> Result {
        let registration = register_with(Defaults {
            namespace_limit: 3,
            ..DEFAULTS
        })?;
        for _ in 0..3 {
            let listener = TestListener::filtered()?;
            let requests = requests(&listener, 3)?;
            for request in &requests {
                // Were the requests of a closed listener still counted, the second one could not park any.
                assert!(request.park(1)?);
            }
            drop(listener);
            drop(requests);
        }
        drop(registration);
        Ok(())
    }

    #[test]
    fn zero_connections_mean_the_default() -> Result {
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
