// SPDX-License-Identifier: MIT OR Apache-2.0

//! The listeners that clients connect to, and which fates their settings allow.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use super::behaviour::{Behaviour, Fate};
use crate::control::{settings, Config, OnTimeout};
use crate::endpoint::{Family, Listen, Listener};
use crate::netns::Netns;

/// What becomes of a listener's silent clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What happens to them.
    pub on_timeout: OnTimeout,
    /// After how long it does; nothing: never.
    pub deadline: Option<Duration>,
    /// How many may be parked before the oldest is evicted; 0: as many as the module allows.
    pub max_parked: u32,
}

impl Policy {
    /// Returns every policy: those with room for all clients, and those where only `few` may be
    /// parked, each for `deadline_of_few`.
    pub fn all(deadline: Duration, few: u32, deadline_of_few: Option<Duration>) -> [Self; 5] {
        let policy = |on_timeout, deadline, max_parked| Self {
            on_timeout,
            deadline,
            max_parked,
        };
        [
            policy(OnTimeout::Accept, Some(deadline), 0),
            policy(OnTimeout::Reset, Some(deadline), 0),
            policy(OnTimeout::Drop, Some(deadline), 0),
            policy(OnTimeout::Accept, deadline_of_few, few),
            policy(OnTimeout::Reset, deadline_of_few, few),
        ]
    }

    /// Opens a filtered listener with this policy.
    pub fn open(&self, family: Family, ns: &Netns) -> Result<Listener> {
        let deadline = self.deadline.unwrap_or_default();
        let config = self.config(u32::try_from(deadline.as_millis())?);
        Listen::filtered(family)
            .backlog(1024)
            .config(config)
            .open(ns)
    }

    /// The same policy with another deadline.
    pub fn config(&self, timeout_ms: u32) -> Config {
        settings(timeout_ms, self.max_parked, self.on_timeout)
    }

    /// Returns a listener with this policy that nothing stands in the way of.
    pub fn at(self, address: SocketAddr) -> Target {
        Target {
            address,
            policy: self,
            changes: false,
            lossy: false,
            forgets: false,
        }
    }
}

/// A listener that clients connect to, and what is known of it.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its address.
    pub address: SocketAddr,
    /// Its policy.
    pub policy: Policy,
    /// Whether its policy changes, or the listener itself does not stay.
    pub changes: bool,
    /// Whether anything may take longer than it should, or fail at first: segments get lost, or
    /// memory is short.
    pub lossy: bool,
    /// Whether a client whose ACK gets lost may be forgotten: the kernel drops a request when it
    /// has no memory to send the SYN-ACK again (`reqsk_timer_handler()`), filter or not.
    pub forgets: bool,
}

impl Target {
    /// Makes a listener that changes all the time. Its clients' deadline is about `deadline`.
    pub fn that_changes(address: SocketAddr, deadline: Duration) -> Self {
        let policy = Policy {
            on_timeout: OnTimeout::Accept,
            deadline: Some(deadline),
            max_parked: 0,
        };
        Self {
            changes: true,
            lossy: true,
            ..policy.at(address)
        }
    }

    /// Returns how long a silent client sends nothing: until well after its deadline, if there is
    /// one.
    pub(super) fn silence(&self) -> Option<Duration> {
        Some(self.policy.deadline? + Duration::from_secs(2))
    }

    /// Returns whether a client's fate agrees with what it did. `late` is one that acted when its
    /// deadline may have been over.
    pub fn allows(&self, behaviour: Behaviour, late: bool, fate: Fate) -> bool {
        if self.changes {
            // Whatever the listener does, every client is told how it ends.
            return fate != Fate::Lost;
        }
        let accepts = self.policy.on_timeout == OnTimeout::Accept;
        let evicts = self.policy.max_parked > 0;
        let may_be_turned_away = self.forgets || !accepts && (late || evicts || self.lossy);
        let expected = match behaviour {
            Behaviour::CloseLater
            | Behaviour::ResetLater
            | Behaviour::HalfOpen
            | Behaviour::ResetInsteadOfAck => Fate::Left,
            Behaviour::FinLater => Fate::Ended,
            // Any client may be evicted; one that was evicted has been turned away.
            Behaviour::Silent if !accepts => Fate::Reset,
            _ => Fate::Answered,
        };
        // Where something stood in its way, a connection may not have been parked at all.
        let may_be_let_in = self.lossy && behaviour == Behaviour::Silent && fate == Fate::Answered;
        fate == expected || (fate == Fate::Reset && may_be_turned_away) || may_be_let_in
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(on_timeout: OnTimeout) -> Target {
        let policy = Policy {
            on_timeout,
            deadline: Some(Duration::from_millis(200)),
            max_parked: 0,
        };
        policy.at("127.0.0.1:1".parse().unwrap())
    }

    #[test]
    fn a_fate_agrees_with_the_listeners_settings() {
        use Behaviour::{DataInAck, DataLater, FinLater, Silent};
        let reset = target(OnTimeout::Reset);
        assert!(reset.allows(Silent, false, Fate::Reset));
        assert!(!reset.allows(Silent, false, Fate::Answered));
        assert!(!reset.allows(DataLater, false, Fate::Reset));
        assert!(reset.allows(DataLater, true, Fate::Reset));
        let accept = target(OnTimeout::Accept);
        assert!(accept.allows(Silent, false, Fate::Answered));
        assert!(!accept.allows(Silent, false, Fate::Reset));
        assert!(!accept.allows(DataLater, true, Fate::Reset));
        let forgets = Target {
            forgets: true,
            ..accept
        };
        assert!(forgets.allows(DataLater, false, Fate::Reset));
        assert!(!forgets.allows(DataLater, false, Fate::Ended));
        assert!(!accept.allows(FinLater, false, Fate::TimedOut));
        let changes = Target::that_changes(accept.address, Duration::from_secs(2));
        assert!(changes.allows(DataInAck, false, Fate::Refused));
        assert!(!changes.allows(DataInAck, false, Fate::Lost));
    }
}
