// SPDX-License-Identifier: GPL-2.0-only

//! The policy as this kernel's compiler built it. Its properties are tested on the host.

use kernel::prelude::*;

#[kunit_tests(accf_policy)]
mod tests {
    use crate::policy::{
        on_alarm, on_segment, Action, Alarm, Dataready, Expiry, Filter, Nanos, Phase, Segment,
        Terms, Timeout,
    };

    #[test]
    fn a_bare_ack_parks() {
        assert!(on_segment(Dataready::verdict(Segment::BareAck), || Phase::Fresh) == Action::Park);
        assert!(on_segment(Dataready::verdict(Segment::Data), || Phase::Parked) == Action::Admit);
    }

    #[test]
    fn deadlines_do_not_overflow() {
        let timeout = Timeout::from_millis(u32::MAX);
        assert!(timeout.deadline(Nanos(u64::MAX - 1)) == Some(Nanos(u64::MAX)));
        let terms = Terms {
            timeout,
            ..crate::fabricate::DEFAULTS.terms
        };
        let due = on_alarm(Nanos(u64::MAX), &terms, 1, Some(Nanos(0)), false);
        assert!(due == Alarm::Due(Expiry::Timeout));
    }
}
