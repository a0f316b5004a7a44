// SPDX-License-Identifier: GPL-2.0-only

//! Spot checks of the policy as the kernel's build compiles it. Its properties are tested on the
//! host.

use kernel::prelude::*;

#[kunit_tests(accf_policy)]
mod tests {
    use crate::policy::{
        on_segment,
        timer_action,
        Action,
        Config,
        Dataready,
        Expiry,
        Filter,
        Nanos,
        Phase,
        SegmentKind,
        Timeout,
        TimerAction, //
    };

    #[test]
    fn a_bare_ack_parks() {
        assert!(
            on_segment(Dataready::verdict(SegmentKind::BareAck), || Phase::Unparked)
                == Action::Park
        );
        assert!(
            on_segment(Dataready::verdict(SegmentKind::Data), || { Phase::Parked })
                == Action::Admit
        );
    }

    #[test]
    fn deadlines_do_not_overflow() {
        let timeout = Timeout::from_millis(u32::MAX);
        assert!(timeout.deadline(Nanos(u64::MAX - 1)) == Some(Nanos(u64::MAX)));
        let config = Config {
            timeout,
            ..crate::fabricate::DEFAULTS.config
        };
        let expired = timer_action(Nanos(u64::MAX), &config, 1, Some(Nanos(0)), false);
        assert!(expired == TimerAction::Expire(Expiry::Timeout));
    }
}
