// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kinds of clients, and how a client can end.

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Behaviour {
    /// Sends its request with the handshake's third segment.
    DataInAck,
    /// Sends its request as soon as it is connected.
    DataAtOnce,
    /// Pauses, and sends its request.
    DataLater,
    /// Pauses, and sends its request in four pieces.
    DataInPieces,
    /// Sends its bare ACK twice and its SYN again, pauses, and sends its request.
    HandshakeTwice,
    /// Pauses, and ends its side without a byte.
    FinLater,
    /// Pauses, and closes without a byte.
    CloseLater,
    /// Pauses, and resets.
    ResetLater,
    /// Sends nothing before its deadline; sends its request later.
    Silent,
    /// Does not acknowledge the SYN-ACK.
    HalfOpen,
    /// Resets instead of acknowledging the SYN-ACK.
    ResetInsteadOfAck,
}

/// When a client acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    AtOnce,
    AfterAPause,
    AfterTheDeadline,
}

/// Kinds of clients, and how many of a hundred are of each.
pub type Mix = [(Behaviour, u8)];

impl Behaviour {
    /// Returns one of a mix, at random.
    pub fn random(mix: &Mix, rng: &mut fastrand::Rng) -> Self {
        let mut left = rng.u8(..100);
        for (behaviour, percent) in mix {
            if left < *percent {
                return *behaviour;
            }
            left -= percent;
        }
        Self::DataLater
    }

    /// Returns what such a client does, in words.
    pub const fn text(self) -> &'static str {
        match self {
            Self::DataInAck => "sends with its ACK",
            Self::DataAtOnce => "sends at once",
            Self::DataLater => "pauses, sends",
            Self::DataInPieces => "pauses, sends in pieces",
            Self::HandshakeTwice => "repeats SYN and ACK, pauses, sends",
            Self::FinLater => "pauses, ends its side",
            Self::CloseLater => "pauses, closes",
            Self::ResetLater => "pauses, resets",
            Self::Silent => "is silent past its deadline",
            Self::HalfOpen => "leaves its connection half-open",
            Self::ResetInsteadOfAck => "resets instead of its ACK",
        }
    }

    pub(super) const fn when(self) -> When {
        match self {
            Self::DataInAck | Self::DataAtOnce | Self::HalfOpen | Self::ResetInsteadOfAck => {
                When::AtOnce
            }
            Self::Silent => When::AfterTheDeadline,
            _ => When::AfterAPause,
        }
    }

    /// Returns whether such a client is parked, if any client is.
    pub(super) fn is_parked(self) -> bool {
        self.when() != When::AtOnce
    }
}

/// How a client ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fate {
    /// Got its answer.
    Answered,
    /// Read the end of the stream, and no answer.
    Ended,
    /// Was reset.
    Reset,
    /// Found no listener.
    Refused,
    /// Its own TCP gave up.
    TimedOut,
    /// Left of its own accord.
    Left,
    /// Nothing happened to it in all the time that a client has.
    Lost,
}

impl Fate {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Answered,
        Self::Ended,
        Self::Reset,
        Self::Refused,
        Self::TimedOut,
        Self::Left,
        Self::Lost,
    ];

    /// Returns how such a client ended, in words.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Ended => "ended",
            Self::Reset => "reset",
            Self::Refused => "refused",
            Self::TimedOut => "timed out",
            Self::Left => "left",
            Self::Lost => "lost",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::{segments, sockets};

    #[test]
    fn a_mix_is_a_hundred_and_all_of_it_is_drawn() {
        let mut rng = fastrand::Rng::with_seed(1);
        for mix in [sockets::MIX, segments::MIX] {
            let sum: u32 = mix.iter().map(|(_, percent)| u32::from(*percent)).sum();
            assert_eq!(sum, 100);
            let mut missing: Vec<_> = mix.iter().map(|(behaviour, _)| *behaviour).collect();
            for _ in 0..10_000 {
                let drawn = Behaviour::random(mix, &mut rng);
                assert!(mix.iter().any(|(behaviour, _)| *behaviour == drawn));
                missing.retain(|behaviour| *behaviour != drawn);
            }
            assert_eq!(missing, []);
        }
    }
}
