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
        net::{
            park_queue::ParkQueue,
            parked_request::ParkedRequest,
            sockopt::Defaults, //
        },
        policy::{
            Bypass,
            Config,
            End,
            Expiry,
            Nanos,
            OnTimeout,
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

    /// Marks a parked request as expired, or as one that waits again.
    fn set_expired(queue: &mut ParkQueue, request: &TestRequest, expired: bool) {
        let expired = expired.then_some((Expiry::Timeout, OnTimeout::Accept));
        // SAFETY: The tests call this with the locked queue of the listener where the request is
        // parked.
        unsafe {
            let parked = request.request().parked_arc();
            queue.set_expired(&parked, expired);
        }
    }

    /// Returns whether `parked` is the entry of a request.
    fn is_of(parked: Option<&ParkedRequest>, request: &TestRequest) -> bool {
        parked.is_some_and(|parked| parked.request_ptr().as_ptr() == request.request().as_ptr())
    }

    /// Checks that each request is the oldest one, once those before it are expired; all wait again
    /// in the end.
    fn are_in_order(queue: &mut ParkQueue, requests: &[TestRequest]) -> bool {
        let mut in_order = true;
        for request in requests {
            in_order &= is_of(queue.oldest().as_deref(), request);
            set_expired(queue, request, true);
        }
        in_order &= queue.oldest().is_none() && queue.victim().is_none();
        for request in requests {
            set_expired(queue, request, false);
        }
        in_order
    }

    /// Says what does not hold. Nothing may be asserted under a lock: an assertion that fails ends
    /// the thread, with the lock held.
    fn check(holds: bool, says: &'static str) -> core::result::Result<(), &'static str> {
        holds.then_some(()).ok_or(says)
    }

    /// Has requests of a queue, which were parked in this order, expire and wait again.
    fn expire_and_wait_again(
        queue: &mut ParkQueue,
        requests: &[TestRequest],
    ) -> core::result::Result<(), &'static str> {
        // The first one is expired while the second one is counted, which then expires as well. (If
        // the test is slow, their SYN-ACK timers may have been deferred already.)
        set_expired(queue, &requests[0], true);
        check(!queue.count_sources(1), "one of eight is not all")?;
        set_expired(queue, &requests[1], true);
        set_expired(queue, &requests[1], false);
        set_expired(queue, &requests[0], false);
        check(is_of(queue.oldest().as_deref(), &requests[0]), "oldest")?;
        // Not all are counted.
        check(is_of(queue.victim().as_deref(), &requests[0]), "victim")?;
        // All SYN-ACK timers are deferred.
        queue.defer_timers(Nanos(u64::MAX));
        check(!queue.has_armed(), "no timer is armed")?;
        check(are_in_order(queue, requests), "order, not counted")?;

        // Those that are counted expire and wait again, in any order.
        for step in [1, 3, 5, 7] {
            check(queue.count_sources(64), "all are counted")?;
            check(is_of(queue.victim().as_deref(), &requests[0]), "victim")?;
            for nth in 0..8 {
                set_expired(queue, &requests[nth * step % 8], true);
            }
            for nth in 0..8 {
                set_expired(queue, &requests[nth * 3 % 8], false);
            }
            check(queue.count_sources(64), "all are counted again")?;
            check(are_in_order(queue, requests), "order, counted")?;
            check(queue.count_sources(64), "all are counted again")?;
            set_expired(queue, &requests[4], true);
            set_expired(queue, &requests[4], false);
            check(queue.count_sources(64), "all are counted again")?;
            check(are_in_order(queue, requests), "order, one returned")?;
        }
        // Some leave while they are expired, some after that, and some are counted.
        set_expired(queue, &requests[0], true);
        set_expired(queue, &requests[1], true);
        set_expired(queue, &requests[2], true);
        set_expired(queue, &requests[2], false);
        check(!queue.count_sources(1), "one is not all")
    }

    #[test]
    fn requests_that_expire_and_wait_again_stay_in_order() -> Result {
        let registration = register(Timeout::Never)?;
        let listener = TestListener::filtered()?;
        let requests = requests(&listener, 8)?;
        for request in &requests {
            assert!(request.park(1)?);
        }
        let outcome = listener.with_queue(|queue| expire_and_wait_again(queue, &requests))?;
        if let Err(says) = outcome {
            pr_err!("does not hold: {says}\n");
        }
        assert!(outcome.is_ok());
        for nth in [5, 0, 2, 7, 1, 6, 3, 4] {
            if nth % 2 == 0 {
                requests[nth].complete()?;
            } else {
                requests[nth].destroy();
            }
        }
        assert!(listener.stats()?.parked == 0);
        assert!(listener.with_queue(|queue| queue.unexpired() == 0)?);
        drop(requests);
        drop(listener);
        drop(registration);
        Ok(())
    }

    /// Has the clients of some requests die, of which one is counted by its source.
    fn die(
        queue: &mut ParkQueue,
        requests: &[TestRequest],
    ) -> core::result::Result<(), &'static str> {
        queue.defer_timers(Nanos(u64::MAX));
        check(!queue.count_sources(1), "one of six is not all")?;
        for nth in [2, 0, 4] {
            // SAFETY: The request is parked at the listener whose queue is locked, its SYN-ACK
            // timer is deferred, and it is not expired.
            unsafe {
                let parked = requests[nth].request().parked_arc();
                queue.bury(&parked);
            }
        }
        check(queue.unexpired() == 3, "three are left")?;
        check(is_of(queue.oldest().as_deref(), &requests[1]), "oldest")?;
        // A CPU that was about to accept it gives up.
        set_expired(queue, &requests[2], false);
        check(queue.unexpired() == 3, "the dead stay dead")?;
        // A CPU is about to drop it, and then another one.
        for (nth, next) in [(2, Some(4)), (4, Some(0)), (0, None)] {
            check(queue.next_dead().is_some(), "next")?;
            // SAFETY: It was buried above, and is in the list of the dead since. The lock is held.
            unsafe {
                let parked = requests[nth].request().parked_arc();
                queue.take_dead(&parked);
            }
            // One that is taken is not told again.
            let told = queue.next_dead();
            check(
                told.is_some() == next.is_some()
                    && next.is_none_or(|next| is_of(told.as_deref(), &requests[next])),
                "next, after one was taken",
            )?;
        }
        set_expired(queue, &requests[0], false);
        check(queue.next_dead().is_none(), "taken for good")?;
        check(queue.unexpired() == 3, "they are still dead")?;
        check(
            is_of(queue.oldest().as_deref(), &requests[1]),
            "oldest again",
        )
    }

    #[test]
    fn requests_whose_clients_have_died_leave_from_any_list() -> Result {
        let registration = register(Timeout::Never)?;
        let listener = TestListener::filtered()?;
        let requests = requests(&listener, 6)?;
        for request in &requests {
            assert!(request.park(1)?);
        }
        let outcome = listener.with_queue(|queue| die(queue, &requests))?;
        if let Err(says) = outcome {
            pr_err!("does not hold: {says}\n");
        }
        assert!(outcome.is_ok());
        for nth in [4, 2, 1, 5, 0, 3] {
            if nth % 2 == 0 {
                requests[nth].destroy();
            } else {
                requests[nth].complete()?;
            }
        }
        assert!(listener.stats()?.parked == 0);
        assert!(listener.with_queue(|queue| queue.unexpired() == 0)?);
        drop(requests);
        drop(listener);
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
