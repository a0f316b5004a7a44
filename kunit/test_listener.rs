// SPDX-License-Identifier: GPL-2.0-only

//! The life of a fabricated request of a real listener.

use kernel::prelude::*;

#[kunit_tests(accf_listener)]
mod tests {
    use core::ptr;

    use kernel::{
        prelude::*,
        sync::atomic::ordering::Relaxed, //
    };

    /// A second, in jiffies.
    const HZ: i64 = bindings::ACCF_HZ as i64;
    /// More jiffies than the kernel ever sets a SYN-ACK timer to.
    const FAR: i64 = 1 << 29;

    use crate::{
        fabricate::{
            register,
            TestListener,
            TestRequest,
            TestSegment,
            DEFAULTS,
            DESTROYED,
            RESETS,
            SYNACKS, //
        },
        net::{
            bindings,
            listen_sock::RAISED,
            reqsk_ops::ListenerTag, //
        },
        policy::{
            Config,
            End,
            Joining,
            Nanos,
            Phase,
            SegmentKind,
            Timeout, //
        }, //
    };

    #[test]
    fn segments_are_classified() -> Result {
        let listener = TestListener::plain()?;
        let request = TestRequest::new(&listener, 0)?;
        for (len, fin, kind) in [
            (0, false, SegmentKind::BareAck),
            (0, true, SegmentKind::Fin),
            (1, false, SegmentKind::Data),
            (1, true, SegmentKind::Data),
            (100, false, SegmentKind::Data),
        ] {
            assert!(TestSegment::new(&request, len, fin, 1)?.kind(&request) == kind);
        }
        Ok(())
    }

    #[test]
    fn a_bare_ack_is_dropped_and_its_request_parked() -> Result {
        let registration = register(Timeout::Never)?;
        let listener = TestListener::filtered()?;
        let request = TestRequest::new(&listener, 0)?;
        assert!(request.phase().is_none());
        assert!(request.bare_ack(500)?);
        assert!(request.phase() == Some(Phase::Parked));
        assert!(!request.has_original_ops());
        assert!(request.last_window() == Some(500));
        // The window is that of the last bare ACK.
        assert!(request.bare_ack(600)?);
        assert!(request.last_window() == Some(600));
        request.complete()?;
        assert!(request.has_original_ops());
        drop(request);
        drop(listener);
        drop(registration);
        Ok(())
    }

    #[test]
    fn the_synack_timer_is_deferred_after_a_while() -> Result {
        let registration = register(Timeout::Never)?;
        let listener = TestListener::filtered()?;
        let soon = TestRequest::new(&listener, 0)?;
        let late = TestRequest::new(&listener, 1)?;
        assert!(soon.park(1)? && late.park(1)?);
        assert!(soon.timer_in() <= HZ && late.timer_in() <= HZ);
        // The timer of a client that sends before that is not touched.
        soon.complete()?;
        assert!(soon.timer_in() <= HZ);
        for _ in 0..60 {
            if late.timer_in() > FAR {
                break;
            }
            kernel::time::delay::fsleep(kernel::time::Delta::from_millis(10));
        }
        assert!(late.timer_in() > FAR);
        assert!(late.phase() == Some(Phase::Parked));

        // The listener's timer is not set any more when the next request is parked.
        let next = TestRequest::new(&listener, 2)?;
        assert!(next.park(1)?);
        for _ in 0..60 {
            if next.timer_in() > FAR {
                break;
            }
            kernel::time::delay::fsleep(kernel::time::Delta::from_millis(10));
        }
        assert!(next.timer_in() > FAR);
        let parked = listener.stats()?.parked;
        late.complete()?;
        next.complete()?;
        assert!(parked == 2 && listener.stats()?.parked == 0);
        drop((soon, late, next));
        drop(listener);
        drop(registration);
        Ok(())
    }

    #[test]
    fn a_synack_timer_that_fires_soon_is_deferred_at_once() -> Result {
        let registration = register(Timeout::Never)?;
        let listener = TestListener::filtered()?;
        let young = listener.young();

        let request = TestRequest::new(&listener, 0)?;
        request.set_timer(HZ / 2);
        assert!(request.park(1)?);
        assert!(request.timer_in() > FAR);
        assert!(listener.young() == young);
        request.complete()?;
        assert!(listener.young() == young + 1);
        drop(request);

        // A timer that has fired before has more time left, but the kernel counts its timeouts.
        let request = TestRequest::new(&listener, 1)?;
        request.time_out(1);
        assert!(request.park(1)?);
        assert!(request.timer_in() > FAR);
        assert!(listener.young() == young);
        request.complete()?;
        assert!(listener.young() == young);
        drop(request);
        drop(listener);
        drop(registration);
        Ok(())
    }

    #[test]
    fn a_reused_entry_keeps_nothing_of_the_request_before() -> Result {
        let registration = register(Timeout::Never)?;
        let listener = TestListener::filtered()?;
        let young = listener.young();
        // More requests than spare entries are kept, which the next round uses again.
        for round in 0..3 {
            let mut requests = KVec::new();
            for nth in 0..80 {
                let request = TestRequest::new(&listener, nth)?;
                assert!(request.phase().is_none());
                let window = 100 * (round + 1) + nth as u16;
                assert!(request.park(window)?);
                assert!(request.phase() == Some(Phase::Parked));
                assert!(request.last_window() == Some(window));
                requests.push(request, GFP_KERNEL)?;
            }
            assert!(listener.stats()?.parked == 80);
            for request in &requests {
                request.complete()?;
                assert!(request.has_original_ops());
            }
            assert!(listener.stats()?.parked == 0);
            drop(requests);
            assert!(listener.young() == young);
        }
        assert!(listener.stats()?.ended(End::Data) == 240);
        drop(listener);
        drop(registration);
        Ok(())
    }

    #[test]
    fn a_request_that_cannot_be_parked_gives_its_entry_back() -> Result {
        let registration = register(Timeout::Never)?;
        let listener = TestListener::filtered()?;
        let first = TestRequest::new(&listener, 0)?;
        let second = TestRequest::new(&listener, 1)?;
        assert!(first.park(1)? && second.park(1)?);
        let last_spare = second.entry();
        first.complete()?;
        second.complete()?;

        // The timer's handler is running, so that the timer cannot be deferred.
        let late = TestRequest::new(&listener, 2)?;
        late.stop_timer();
        assert!(!late.park(1)?);
        assert!(late.has_original_ops());

        // The spare entry that was recycled last is used first.
        let next = TestRequest::new(&listener, 3)?;
        assert!(next.park(1)?);
        assert!(next.entry() == last_spare);
        next.complete()?;
        drop((first, second, late, next));
        drop(listener);
        drop(registration);
        Ok(())
    }

    #[test]
    fn a_request_is_acked_before_it_is_parked() -> Result {
        let registration = register(Timeout::Never)?;
        let listener = TestListener::filtered()?;
        let request = TestRequest::new(&listener, 0)?;
        assert!(!request.request().was_acked());
        // `park()` marks it: the kernel marks it only after `syn_recv_sock()` has returned.
        assert!(request.park(1)?);
        assert!(request.request().was_acked());
        request.complete()?;
        drop(request);

        // Taken out of the table before it could be parked, it is marked nonetheless: so the CPU
        // that took it out waits for the lock.
        let request = TestRequest::new(&listener, 1)?;
        request.unhash();
        assert!(!request.park(1)?);
        assert!(request.request().was_acked());
        drop(request);
        drop(listener);
        drop(registration);
        Ok(())
    }

    #[test]
    fn a_request_that_is_not_in_the_table_is_not_parked() -> Result {
        let registration = register(Timeout::Never)?;
        let listener = TestListener::filtered()?;
        let request = TestRequest::new(&listener, 0)?;
        request.unhash();
        assert!(!request.park(1)?);
        assert!(request.has_original_ops());
        assert!(request.phase().is_none());
        drop(request);
        drop(listener);
        drop(registration);
        Ok(())
    }

    #[test]
    fn a_listener_that_lost_the_ops_override_parks_no_request() -> Result {
        let registration = register(Timeout::Never)?;
        let plain = TestListener::plain()?;
        let listener = TestListener::filtered()?;
        let parked = TestRequest::new(&listener, 0)?;
        assert!(parked.park(1)?);
        listener.lose_af_ops(&plain);
        let request = TestRequest::new(&listener, 0)?;
        assert!(!request.park(1)?);
        assert!(request.has_original_ops());
        // A connection made now makes the request fall back that was parked before.
        parked.fall_back()?;
        assert!(parked.has_original_ops());
        assert!(parked.timer_in() <= 1);
        let stats = listener.stats()?;
        assert!(stats.parked == 0);
        assert!(stats.ended(End::Fallback) == 1);
        drop(request);
        drop(parked);
        drop(listener);
        drop(registration);
        Ok(())
    }

    #[test]
    fn a_request_whose_timer_is_firing_is_not_parked() -> Result {
        let registration = register(Timeout::Never)?;
        let listener = TestListener::filtered()?;
        let request = TestRequest::new(&listener, 0)?;
        request.stop_timer();
        assert!(!request.park(1)?);
        assert!(request.has_original_ops());
        assert!(request.timer_in() == -1);
        drop(request);
        drop(listener);
        drop(registration);
        Ok(())
    }

    #[test]
    fn the_synack_timer_sends_nothing_and_never_runs_out() -> Result {
        let registration = register(Timeout::Never)?;
        let listener = TestListener::filtered()?;
        let request = TestRequest::new(&listener, 0)?;
        assert!(request.park(1)?);
        let sent = SYNACKS.load(Relaxed);
        let young = listener.young();

        // A retransmitted SYN, as the timer is pending. It is answered, but the kernel must not
        // count the answer as a retransmission.
        assert!(request.send_synack() != 0);
        assert!(SYNACKS.load(Relaxed) == sent + 1);

        // The timer's handler, which then counts the timeout: as the first one, and as the last one
        // that it can count.
        for timeouts in [1, 127] {
            request.stop_timer();
            assert!(request.send_synack() != 0);
            assert!(SYNACKS.load(Relaxed) == sent + 1);
            assert!(request.timeouts() == 0);
            assert!(listener.young() == young + 1);
            request.time_out(timeouts);
            assert!(listener.young() == young);
        }

        request.complete()?;
        drop(request);
        drop(listener);
        drop(registration);
        Ok(())
    }

    #[test]
    fn the_timestamp_of_a_sent_ack_may_be_echoed() -> Result {
        let registration = register(Timeout::Never)?;
        let listener = TestListener::filtered()?;
        let request = TestRequest::new(&listener, 5_000_000)?;
        assert!(request.park(1)?);
        let now = request.tsval_now();
        assert!(now.wrapping_sub(request.last_tsval()) >= 5_000);
        request.send_ack();
        assert!(request.last_tsval().wrapping_sub(now) < 5_000);
        request.complete()?;
        drop(request);
        drop(listener);
        drop(registration);
        Ok(())
    }

    #[test]
    fn the_round_trip_is_that_of_the_bare_ack() -> Result {
        let registration = register(Timeout::Never)?;
        let listener = TestListener::filtered()?;
        let request = TestRequest::new(&listener, 40_000)?;
        assert!(request.park(1)?);
        let at_park = request.synack_age_us();
        kernel::time::delay::fsleep(kernel::time::Delta::from_millis(50));
        assert!(request.synack_age_us() >= at_park + 50_000);
        request.complete()?;
        // The round-trip time when it was parked, not the time since the SYN-ACK.
        assert!(request.synack_age_us() < at_park + 50_000);
        assert!(request.synack_age_us() >= 40_000);
        drop(request);
        drop(listener);
        drop(registration);
        Ok(())
    }

    #[test]
    fn a_parked_request_that_dies_leaves_nothing_behind() -> Result {
        let registration = register(Timeout::Never)?;
        let listener = TestListener::filtered()?;
        let request = TestRequest::new(&listener, 0)?;
        let destroyed = DESTROYED.load(Relaxed);
        assert!(request.park(1)?);
        request.destroy();
        assert!(DESTROYED.load(Relaxed) == destroyed + 1);
        assert!(request.has_original_ops());
        assert!(request.phase().is_none());
        // Closing the listener would use freed memory if the request were still in the queue.
        drop(request);
        drop(listener);
        drop(registration);
        Ok(())
    }

    #[test]
    fn a_dying_request_is_left_to_its_destructor() -> Result {
        let registration = register(Timeout::Never)?;

        // It dies before its deadline.
        let listener = TestListener::filtered()?;
        let request = TestRequest::new(&listener, 0)?;
        assert!(request.park(1)?);
        request.kill();
        listener.set_config(Config {
            timeout: Timeout::from_millis(1),
            ..DEFAULTS.config
        })?;
        for _ in 0..100 {
            if listener.stats()?.parked == 0 {
                break;
            }
            kernel::time::delay::fsleep(kernel::time::Delta::from_millis(10));
        }
        assert!(listener.stats()?.ended(End::Aborted) == 1);
        assert!(request.references() == 0);
        request.destroy();
        assert!(request.has_original_ops());
        drop(request);

        // It dies before its listener closes.
        let request = TestRequest::new(&listener, 0)?;
        listener.set_config(DEFAULTS.config)?;
        assert!(request.park(1)?);
        request.kill();
        drop(listener);
        assert!(request.references() == 0);
        request.destroy();
        assert!(request.has_original_ops());
        drop(request);
        drop(registration);
        Ok(())
    }

    #[test]
    fn a_clone_of_a_parked_request_is_not_parked() -> Result {
        let registration = register(Timeout::Never)?;
        let listener = TestListener::filtered()?;
        let request = TestRequest::new(&listener, 0)?;
        assert!(request.park(1)?);

        // A clone that the kernel drops.
        let clone = request.kernel_clone()?;
        let destroyed = DESTROYED.load(Relaxed);
        assert!(!clone.has_original_ops());
        assert!(clone.phase().is_none());
        // Nor is a clone at the address of the original parked, as its listener has another tag.
        assert!(!request.request().is_parked(ListenerTag::new()));
        clone.destroy();
        assert!(DESTROYED.load(Relaxed) == destroyed + 1);
        assert!(request.phase() == Some(Phase::Parked));
        drop(clone);

        // A clone that the timer's handler makes for another listener has the original operations
        // once its first SYN-ACK is sent.
        let clone = request.kernel_clone()?;
        let sent = SYNACKS.load(Relaxed);
        assert!(clone.send_synack() == 0);
        assert!(SYNACKS.load(Relaxed) == sent + 1);
        assert!(clone.has_original_ops());
        assert!(request.phase() == Some(Phase::Parked));
        drop(clone);

        // A clone that was not restored then keeps its child, if it is in an accept queue by the
        // time that a SYN of its client is answered.
        let clone = request.kernel_clone()?;
        clone.set_child(listener.sk());
        assert!(clone.send_synack() == 0);
        assert!(clone.child() == listener.sk());
        clone.set_child(ptr::null_mut());
        drop(clone);

        request.complete()?;
        drop(request);
        drop(listener);
        drop(registration);
        Ok(())
    }

    #[test]
    fn clients_of_a_closing_listener_are_told() -> Result {
        let registration = register(Timeout::from_millis(60_000))?;
        let listener = TestListener::filtered()?;
        let first = TestRequest::new(&listener, 0)?;
        let second = TestRequest::new(&listener, 0)?;
        assert!(first.park(1)? && second.park(1)?);
        let resets = RESETS.load(Relaxed);
        drop(listener);
        for request in [&first, &second] {
            assert!(request.has_original_ops());
            assert!(!request.request().is_hashed());
        }
        assert!(RESETS.load(Relaxed) - resets == 2);
        drop(first);
        drop(second);
        drop(registration);
        Ok(())
    }

    #[test]
    fn the_backlog_is_raised_while_a_call_of_tcp_needs_it() -> Result {
        let registration = register(Timeout::Never)?;
        let listener = TestListener::filtered()?;
        listener.listen_again(3);
        let seen = listener.with_listener(|filtered, bh| {
            let joining = Joining::Parked(Nanos(0));
            let first = filtered.raise_backlog(bh, joining)?;
            let one = listener.backlog();
            let second = filtered.raise_backlog(bh, joining)?;
            let one_was_raised = first.lower(bh, None, false);
            let other = listener.backlog();
            let other_was_raised = second.lower(bh, None, false);
            Some((one, one_was_raised, other, other_was_raised))
        })?;
        assert!(seen == Some((RAISED, true, RAISED, true)));
        assert!(listener.backlog() == 3);
        drop(listener);
        drop(registration);
        Ok(())
    }

    #[test]
    fn what_listen_sets_while_the_backlog_is_raised_stays() -> Result {
        let registration = register(Timeout::Never)?;
        let listener = TestListener::filtered()?;
        let child = TestListener::plain()?;
        listener.listen_again(3);
        let seen = listener.with_listener(|filtered, bh| {
            let joining = Joining::Parked(Nanos(0));
            let first = filtered.raise_backlog(bh, joining)?;
            listener.listen_again(5);
            // It is raised again, and knows of that.
            let second = filtered.raise_backlog(bh, joining)?;
            let raised = listener.backlog();
            let first = first.lower(bh, Some(child.listen_sock()), false);
            let second = second.lower(bh, None, false);
            let between = listener.backlog();
            let third = filtered.raise_backlog(bh, joining)?;
            listener.listen_again(7);
            let third = third.lower(bh, None, false);
            Some((raised, first, second, between, third))
        })?;
        // The first and the third call found it lower than they had raised it, for a moment.
        assert!(seen == Some((RAISED, false, true, 5, false)));
        assert!(listener.backlog() == 7);
        assert!(child.backlog() == 5);
        drop((listener, child));
        drop(registration);
        Ok(())
    }

    #[test]
    fn a_closed_listener_raises_no_backlog() -> Result {
        let registration = register(Timeout::Never)?;
        let listener = TestListener::filtered()?;
        listener.listen_again(3);
        listener.with_queue(|queue| queue.close())?;
        let is_raised = listener.with_listener(|filtered, bh| {
            let raised = filtered.raise_backlog(bh, Joining::Parked(Nanos(0)));
            raised.map(|raised| raised.lower(bh, None, false)).is_some()
        })?;
        assert!(!is_raised && listener.backlog() == 3);
        drop(listener);
        drop(registration);
        Ok(())
    }
}
