// SPDX-License-Identifier: MIT OR Apache-2.0

//! How many clients of each kind began, and how they ended.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::behaviour::{Behaviour, Fate};
use super::target::Target;

/// The number of clients that ended, by their listener, what they did, whether they were late, and
/// their fate.
pub type Fates = BTreeMap<(usize, Behaviour, bool, Fate), u64>;

/// How many clients of each kind began, and how they ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    begun: BTreeMap<Behaviour, u64>,
    fates: Fates,
    doubtful: BTreeMap<usize, u64>,
}

impl Tally {
    pub(super) fn begin(&mut self, behaviour: Behaviour) {
        *self.begun.entry(behaviour).or_default() += 1;
    }

    pub(super) fn end(&mut self, target: usize, behaviour: Behaviour, late: bool, fate: Fate) {
        *self
            .fates
            .entry((target, behaviour, late, fate))
            .or_default() += 1;
    }

    pub(super) fn doubt(&mut self, target: usize) {
        *self.doubtful.entry(target).or_default() += 1;
    }

    /// Returns how many clients have begun, by what they do.
    pub fn begun(&self) -> &BTreeMap<Behaviour, u64> {
        &self.begun
    }

    /// Returns how the clients so far have ended.
    pub fn fates(&self) -> &Fates {
        &self.fates
    }

    fn sum(&self, target: usize, of: impl Fn(Behaviour, bool) -> bool) -> u64 {
        let all = self.fates.iter();
        all.filter(|((at, behaviour, late, _), _)| *at == target && of(*behaviour, *late))
            .map(|(_, count)| count)
            .sum()
    }

    /// Returns how many clients of a listener did one of these things.
    pub fn count(&self, target: usize, behaviours: &[Behaviour]) -> u64 {
        self.sum(target, |behaviour, _| behaviours.contains(&behaviour))
    }

    /// Returns how many clients of a listener did one of these things in time: at least, and at
    /// most.
    pub fn in_time(&self, target: usize, behaviours: &[Behaviour]) -> RangeInclusive<u64> {
        let sure = self.sum(target, |it, late| behaviours.contains(&it) && !late);
        sure..=self.count(target, behaviours)
    }

    /// Returns how many clients of a listener are of a kind that is parked, if any client is.
    pub fn to_be_parked(&self, target: usize) -> u64 {
        self.sum(target, |behaviour, _| behaviour.is_parked())
    }

    /// Returns how many clients of a listener acknowledged so late that it is not known what their
    /// ACK was to the server: on a machine that is very busy.
    pub fn doubtful(&self, target: usize) -> u64 {
        self.doubtful.get(&target).copied().unwrap_or_default()
    }

    /// Describes the fates that do not agree with what the clients did.
    ///
    /// The kernel had no memory for `resets_not_sent` resets (`TcpExtTCPAbortFailed`). It sends a
    /// connection's reset once, or never (`tcp_send_active_reset()`): as many clients of listeners
    /// that change may wait for ever. Such a listener had their connection, which was not accepted
    /// yet, and all that they sent.
    pub fn complaints(&self, targets: &[Target], resets_not_sent: u64) -> Vec<String> {
        let is_waiting = |target: &Target, fate| target.changes && fate == Fate::Lost;
        let all = || {
            self.fates
                .iter()
                .map(|((index, behaviour, late, fate), count)| {
                    (targets.get(*index), *behaviour, *late, *fate, *count)
                })
        };
        let waiting: u64 = all()
            .filter(|(target, _, _, fate, _)| target.is_some_and(|it| is_waiting(it, *fate)))
            .map(|(.., count)| count)
            .sum();
        let wrong = all().filter(|(target, behaviour, late, fate, _)| {
            !target.is_some_and(|target| {
                target.allows(*behaviour, *late, *fate)
                    || (is_waiting(target, *fate) && waiting <= resets_not_sent)
            })
        });
        wrong
            .map(|(target, behaviour, late, fate, count)| {
                let late = if late { " late" } else { "" };
                format!("{count}{late} {behaviour:?} clients were {fate:?}, of {target:?}")
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clients::target::Policy;
    use crate::control::OnTimeout;

    #[test]
    fn as_many_may_wait_as_resets_were_not_sent() {
        let address = "127.0.0.1:1".parse().unwrap();
        let changes = Target::that_changes(address, Duration::ZERO);
        let policy = Policy {
            on_timeout: OnTimeout::Reset,
            deadline: None,
            max_parked: 0,
        };
        let complaints = |target, lost, resets_not_sent| {
            let mut tally = Tally::default();
            for _ in 0..lost {
                tally.end(0, Behaviour::DataAtOnce, false, Fate::Lost);
            }
            tally.complaints(&[target], resets_not_sent).len()
        };
        assert_eq!(complaints(changes, 2, 2), 0);
        assert_eq!(complaints(changes, 2, 1), 1);
        assert_eq!(complaints(changes, 1, 0), 1);
        assert_eq!(complaints(policy.at(address), 1, 1), 1);
    }

    #[test]
    fn late_clients_count_at_most() {
        let mut tally = Tally::default();
        tally.end(0, Behaviour::FinLater, false, Fate::Ended);
        tally.end(0, Behaviour::FinLater, true, Fate::Reset);
        tally.end(0, Behaviour::Silent, false, Fate::Reset);
        tally.end(1, Behaviour::FinLater, false, Fate::Ended);
        assert_eq!(tally.in_time(0, &[Behaviour::FinLater]), 1..=2);
        assert_eq!(tally.to_be_parked(0), 3);
    }
}
